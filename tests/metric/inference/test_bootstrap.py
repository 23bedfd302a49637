"""One resampling for all variants: errors shrink as they should, and what variants share cancels."""

import dataclasses

import pytest
import torch

from ptq_diffusion.metric import (
    FeatureMoments,
    Parts,
    frechet_distance,
    paired_fid,
    paired_fid_to,
    paired_mean,
    paired_parts,
)
from ptq_diffusion.metric.inference.bootstrap import Estimate, resampling_weights


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


REFERENCE = FeatureMoments.of(normal(5000, 4, seed=7), "x")


def width(interval):
    return interval.high - interval.low


def mean_difference(first, second, replicates, seed, strata=1):
    return paired_mean({"first": first, "second": second}, replicates, seed, strata).differences["first", "second"]


def test_weights_count_draws_with_replacement():
    weights = torch.stack([resampling_weights(500, 3, replicate) for replicate in range(40)])
    assert torch.equal(weights, weights.round()) and weights.min() == 0
    assert torch.equal(weights.sum(1), torch.full((40,), 500.0).double())
    assert (weights == 0).double().mean().item() == pytest.approx(torch.e**-1, abs=0.01)


def drawn_again(rows, replicates, strata):
    """Features of resampled images, each as often as it was drawn."""
    weights = (resampling_weights(len(rows), 1, replicate, strata) for replicate in range(replicates))
    return [FeatureMoments.of(rows.repeat_interleave(weight.long(), 0), "x") for weight in weights]


def standard_deviation(distances):
    return torch.tensor(list(distances), dtype=torch.float64).std().item()


@pytest.mark.parametrize("strata", [1, 3])
@pytest.mark.parametrize("count", [210, 12], ids=["more images than features", "fewer images than features"])
def test_values_and_errors_equal_those_of_images_drawn_again(count, strata):
    reference = FeatureMoments.of(normal(5000, 20, seed=7), "x")
    rows = {"float": normal(count, 20) + 0.3, "near": normal(count, 20) + 0.1 * normal(count, 20, seed=1)}
    drawn = {name: drawn_again(features, 5, strata) for name, features in rows.items()}
    real = paired_fid(rows, reference, 5, seed=1, strata=strata)
    to_float = paired_fid_to("float", rows, "x", 5, seed=1, strata=strata)
    near, own = (FeatureMoments.of(rows[name], "x") for name in ("near", "float"))
    assert to_float.estimates["near"].value == frechet_distance(near, own)
    for name, features in rows.items():
        if strata > 1:
            alone = [frechet_distance(FeatureMoments.of(part, "x"), reference) for part in features.chunk(strata)]
            assert real.estimates[name].seed_spread == pytest.approx(standard_deviation(alone), rel=1e-4)
        moments = FeatureMoments.of(features, "x")
        assert real.estimates[name].value == frechet_distance(moments, reference)
        expected = standard_deviation(frechet_distance(one, reference) for one in drawn[name])
        assert real.estimates[name].standard_error == pytest.approx(expected, rel=1e-4)
    distances = [[frechet_distance(one, reference) for one in drawn[name]] for name in ("float", "near")]
    expected = standard_deviation(a - b for a, b in zip(*distances, strict=True))
    assert real.differences["float", "near"].standard_error == pytest.approx(expected, rel=1e-4)
    pairs = zip(drawn["near"], drawn["float"], strict=True)
    expected = standard_deviation(frechet_distance(near, other) for near, other in pairs)
    assert to_float.estimates["near"].standard_error == pytest.approx(expected, rel=1e-4)
    assert dataclasses.astuple(to_float.estimates["float"]) == (0, 0, 0 if strata > 1 else None)


def test_the_same_variant_twice_differs_by_nothing():
    rows = normal(100, 4)
    result = paired_fid({"a": rows, "b": rows.clone()}, REFERENCE, 10, seed=0)
    interval = result.differences["a", "b"]
    assert (interval.difference, interval.low, interval.high) == (0, 0, 0)
    assert result.estimates["a"] == result.estimates["b"]


def test_equal_seeds_give_equal_results_and_others_do_not():
    rows = {"a": normal(100, 4), "b": normal(100, 4, seed=1)}
    first, again, other = (paired_fid(rows, REFERENCE, 10, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.estimates["a"].value == other.estimates["a"].value
    assert first.estimates["a"].standard_error != other.estimates["a"].standard_error


def test_a_variant_does_not_change_the_others():
    a, b, c = (normal(100, 4, seed=seed) for seed in range(3))
    pair = paired_fid({"a": a, "b": b}, REFERENCE, 10, seed=0)
    triple = paired_fid({"a": a, "b": b, "c": c}, REFERENCE, 10, seed=0)
    assert list(triple.differences) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pair.differences["a", "b"] == triple.differences["a", "b"]


def test_error_of_the_distance_shrinks_with_the_root_of_the_count():
    rows = normal(3200, 4) + 0.5
    errors = [paired_fid({"a": rows[:count]}, REFERENCE, 200, 0).estimates["a"].standard_error for count in (800, 3200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)


def test_error_of_a_mean_is_the_textbook_one():
    values = normal(1000)
    estimate = paired_mean({"a": values}, 400, seed=0).estimates["a"]
    assert estimate.value == pytest.approx(values.mean().item(), rel=1e-5)
    assert estimate.standard_error == pytest.approx(values.std().item() / 1000**0.5, rel=0.15)


def test_pairing_narrows_the_interval_and_covers_the_difference():
    a = normal(500, 4)
    near, order = a + 0.1, torch.randperm(500, generator=torch.Generator().manual_seed(5))
    paired = paired_fid({"a": a, "b": near}, REFERENCE, 100, seed=0).differences["a", "b"]
    unpaired = paired_fid({"a": a, "b": near[order]}, REFERENCE, 100, seed=0).differences["a", "b"]
    assert paired.difference == pytest.approx(unpaired.difference, abs=1e-9)
    assert width(paired) < width(unpaired)
    assert paired.high - paired.difference == pytest.approx(paired.difference - paired.low)


def test_interval_of_a_constant_difference_has_no_width():
    values = normal(300)
    interval = mean_difference(values + 2, values, 50, seed=0)
    assert interval.difference == pytest.approx(2, abs=1e-5)
    assert width(interval) < 1e-5
    swapped = mean_difference(values, values + 2, 50, seed=0)
    assert swapped.difference == pytest.approx(-interval.difference)


def test_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        interval = mean_difference(normal(60, seed=seed) + 1, normal(60, seed=seed + 1000), 60, seed)
        covered += interval.low <= 1 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("rows", "replicates", "message"),
    [
        ({"a": normal(10, 4), "b": normal(9, 4)}, 10, "one shape"),
        ({"a": normal(1, 4)}, 10, "N >= 2"),
        ({"a": normal(10, 3)}, 10, "as in the reference"),
        ({"a": normal(10)}, 10, "one shape"),
        ({}, 10, "one shape"),
        ({"a": normal(10, 4)}, 1, "replicates"),
    ],
)
def test_what_cannot_be_paired_is_refused(rows, replicates, message):
    with pytest.raises(ValueError, match=message):
        paired_fid(rows, REFERENCE, replicates, seed=0)


def draw_of_pairs(repetition, count=300, width=6):
    """Features of float images and of two variants that stray from them a little, independently each time."""
    draw = torch.Generator().manual_seed(repetition)
    rows = torch.randn(count, width, generator=draw)
    return {
        "float": rows,
        "near": rows + 0.1 * torch.randn(count, width, generator=draw),
        "far": rows * 1.1 + 0.2 * torch.randn(count, width, generator=draw),
    }


def test_errors_of_a_distance_to_a_variant_are_those_of_independent_repetitions():
    """The variant's own sampling noise is shared and cancels: a fixed one would give far too large errors."""
    found = [paired_fid_to("float", draw_of_pairs(r), "x", 60, 0) for r in range(40)]
    for variant in ("near", "far"):
        spread = torch.tensor([one.estimates[variant].value for one in found]).std()
        claimed = torch.tensor([one.estimates[variant].standard_error for one in found]).mean()
        assert 0.6 < claimed / spread < 1.6


def test_a_variant_is_at_no_distance_from_itself_and_that_is_certain():
    found = paired_fid_to("float", draw_of_pairs(0), "x", 10, 0)
    assert found.estimates["float"] == Estimate(0.0, 0.0, None)


def test_strata_are_resampled_apart_and_one_stratum_is_none():
    weights = torch.stack([resampling_weights(300, 3, replicate, 3) for replicate in range(20)])
    assert torch.equal(weights.view(20, 3, 100).sum(2), torch.full((20, 3), 100.0).double())
    assert not torch.equal(weights[:, :100], weights[:, 100:200])
    assert torch.equal(resampling_weights(300, 3, 0, 1), resampling_weights(300, 3, 0))


def test_what_only_seeds_differ_in_is_spread_and_not_error():
    """Constant images whose level depends on the seed: stratified, the mean is certain; its spread over seeds shows."""
    values = torch.tensor([1.0, 2.0, 4.0]).repeat_interleave(50)
    found = paired_mean({"a": values}, 20, 0, strata=3).estimates["a"]
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert found.seed_spread == pytest.approx(torch.tensor([1.0, 2.0, 4.0]).std().item())
    assert paired_mean({"a": values}, 20, 0).estimates["a"].seed_spread is None


def test_spread_over_seeds_that_are_but_labels_is_the_error_times_the_root_of_their_count():
    ratios = []
    for seed in range(30):
        found = paired_mean({"a": normal(800, seed=seed)}, 60, 0, strata=8).estimates["a"]
        ratios.append(found.seed_spread / found.standard_error)
    assert sum(ratios) / 30 == pytest.approx(8**0.5, rel=0.15)


def test_spread_of_the_distance_is_that_of_each_seeds_images_alone():
    rows = normal(300, 4)
    found = paired_fid({"a": rows}, REFERENCE, 2, 0, strata=3).estimates["a"]
    alone = [frechet_distance(FeatureMoments.of(part, "x"), REFERENCE) for part in rows.split(100)]
    assert found.seed_spread == pytest.approx(torch.tensor(alone).double().std().item(), rel=1e-4)


@pytest.mark.parametrize(("count", "strata"), [(10, 3), (3, 3)])
def test_seeds_without_equally_many_images_are_refused(count, strata):
    with pytest.raises(ValueError, match=f"{strata} seeds, at least 2 of each"):
        paired_mean({"a": normal(count)}, 10, 0, strata)


def test_detectable_difference_is_found_in_four_of_five_experiments_and_shrinks_with_the_root_of_the_count():
    """Two-sided 5 %: the interval excludes 0."""
    detectable = 2.8 / 100**0.5  # of differences with standard deviation 1
    found = [mean_difference(normal(100, seed=s) + detectable, torch.zeros(100), 100, s) for s in range(300)]
    assert sum(interval.low > 0 for interval in found) / 300 == pytest.approx(0.8, abs=0.08)
    claimed = sum(interval.detectable for interval in found) / 300
    assert claimed == pytest.approx(detectable, rel=0.05)
    more = [mean_difference(normal(1600, seed=s), torch.zeros(1600), 100, s).detectable for s in range(30)]
    assert claimed / (sum(more) / 30) == pytest.approx(4, rel=0.1)


def test_parts_carry_the_error_and_the_value_stays_that_of_the_metric():
    """The variance of images, whose jackknife parts are known in closed form."""
    x = normal(400).double()
    without = torch.stack([torch.cat([x[:i], x[i + 1 :]]).var() for i in range(400)])
    parts = Parts(x.var().item(), 400 * x.var() - 399 * without)
    found = paired_parts({"a": parts}, 300, 0).estimates["a"]
    assert found.value == x.var().item()
    assert found.standard_error == pytest.approx((2 / 400) ** 0.5, rel=0.25)
