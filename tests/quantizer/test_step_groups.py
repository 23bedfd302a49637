"""Groups of steps cover a table once, in order, and the clustered ones are the best runs there are."""

from itertools import combinations, pairwise

import pytest
import torch

from ptq_diffusion.quantizer import ClusteredGroups, EqualGroups, GivenGroups
from ptq_diffusion.quantizer.step_groups import fisher_starts


@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_groups_are_runs_that_cover_all_steps(steps):
    for count in range(1, steps + 1):
        divisions = [EqualGroups(count, []).observed("conv_in", steps)]
        features = torch.randn(steps, 2, generator=torch.Generator().manual_seed(count))
        divisions.append(ClusteredGroups(count, []).divided(features))
        divisions.append(GivenGroups(list(range(count)), []).observed("conv_in", steps))
        for groups in divisions:
            assert groups == ([0] if count == 1 else sorted(groups)) and set(groups) == set(range(count))
            assert len(groups) == (1 if count == 1 else steps)
        sizes = [divisions[0].count(group) for group in range(count)]
        assert max(sizes) - min(sizes) <= 1


def test_given_groups_begin_where_they_are_told_to():
    assert GivenGroups([0, 2, 5], []).observed("conv_in", 6) == [0, 0, 1, 1, 1, 2]


def test_names_that_match_have_a_group_at_every_step():
    groups = EqualGroups(1, ["*.time_emb_proj"])
    assert groups.observed("mid_block.time_emb_proj", 3) == [0, 1, 2] and groups.observed("conv_in", 3) == [0]
    assert groups.by_step and EqualGroups(2, []).by_step and not EqualGroups(1, []).by_step


@pytest.mark.parametrize("width", [1, 3])
def test_clusters_have_the_least_squared_distance_of_all_runs(width):
    features = torch.randn(7, width, generator=torch.Generator().manual_seed(0))

    def distance(starts):
        return sum(float((run - run.mean(0)).square().sum()) for run in runs(features, starts))

    for count in range(1, 8):
        starts = fisher_starts(features, count)
        every = [distance([0, *others]) for others in combinations(range(1, 7), count - 1)]
        assert len(starts) == count and distance(starts) == pytest.approx(min(every), abs=1e-6)


def runs(features, starts):
    return [features[first:last] for first, last in pairwise([*starts, len(features)])]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda: EqualGroups(0, []), "1 group of steps or more, got 0"),
        (lambda: GivenGroups([], []), r"ascend from 0, such as \[0,5,15\], got \[\]"),
        (lambda: GivenGroups([1, 2], []), "ascend from 0"),
        (lambda: GivenGroups([0, 2, 2], []), "ascend from 0"),
        (lambda: GivenGroups([0, 3], []).require(["conv_in"], 3), "begins at step 3; lower quantizer.steps.starts"),
        (lambda: EqualGroups(4, []).require(["conv_in"], 3), "steps, 3, got 4; lower quantizer.steps.count"),
        (lambda: ClusteredGroups(4, []).require(["conv_in"], 3), "steps, 3, got 4; lower quantizer.steps.count"),
        (lambda: EqualGroups(1, ["*.odd"]).require(["conv_in"], 3), r"such as conv_in, got '\*.odd', which matches"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        groups()
