"""Precision, recall, density and coverage: their definitions, their limits, and what each of them sees."""

import pytest
import torch

from ptq_diffusion.metric import Neighbourhoods, neighbour_metrics
from ptq_diffusion.metric.distance import neighbours

NAMES = ("precision", "recall", "density", "coverage")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def judged(samples, real, k=3, is_paired=False):
    return neighbour_metrics(Neighbourhoods.of(samples, k), Neighbourhoods.of(real, k), is_paired)


def values(samples, real, k=3, is_paired=False):
    return {name: found.value for name, found in judged(samples, real, k, is_paired).items()}


def defined(samples, real, k=3):
    """One image at a time, in the words of the papers."""

    def radius(rows, i):
        return (rows - rows[i]).norm(dim=1).sort().values[k]  # the first is itself

    sample_radii = [radius(samples, i) for i in range(len(samples))]
    real_radii = [radius(real, j) for j in range(len(real))]
    apart = torch.tensor([[(s - r).norm() for r in real] for s in samples])
    in_real = torch.tensor([[apart[i, j] <= real_radii[j] for j in range(len(real))] for i in range(len(samples))])
    in_sample = torch.tensor([[apart[i, j] <= sample_radii[i] for j in range(len(real))] for i in range(len(samples))])
    return {
        "precision": in_real.any(1).double().mean().item(),
        "recall": in_sample.any(0).double().mean().item(),
        "density": in_real.double().sum().item() / k / len(samples),
        "coverage": in_real.any(0).double().mean().item(),
    }


def test_equal_their_definitions_and_chunks_do_not_matter(monkeypatch):
    samples, real = normal(24, 3).double() * 1.3, normal(30, 3, seed=1).double()
    expected = defined(samples, real)
    assert values(samples, real) == pytest.approx(expected)
    monkeypatch.setattr("ptq_diffusion.metric.distance.neighbours.CHUNK", 7)
    assert values(samples, real) == pytest.approx(expected)


def test_the_same_set_is_all_inside_and_all_covered():
    rows = normal(200, 8)
    found = values(rows, rows.clone())
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["density"] == pytest.approx((3 + 1) / 3, rel=1e-12)  # k neighbours and the image itself


def test_a_set_far_away_is_nowhere_inside():
    assert set(values(normal(50, 4) + 100, normal(50, 4, seed=1)).values()) == {0}


def test_the_order_of_images_does_not_matter():
    samples, real = normal(60, 4), normal(80, 4, seed=1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    first, again = judged(samples, real), judged(samples[order], real)
    for name in NAMES:
        assert first[name].value == pytest.approx(again[name].value)
        assert torch.allclose(first[name].parts[order], again[name].parts)


def test_a_collapsed_set_is_precise_and_recalls_little_and_a_wide_one_the_reverse():
    real = normal(400, 6)
    collapsed, wide = values(normal(400, 6, seed=1) * 0.3, real), values(normal(400, 6, seed=1) * 3, real)
    assert collapsed["precision"] > wide["precision"] and collapsed["density"] > wide["density"]
    assert collapsed["recall"] < wide["recall"]
    same = values(normal(400, 6, seed=1), real)
    assert same["coverage"] > max(collapsed["coverage"], wide["coverage"])


def test_a_pair_of_equal_noise_is_left_out(monkeypatch):
    """Every sample is judged by the real images without its own, as if it had been drawn apart."""
    real = normal(24, 3).double()
    samples = real + 0.2 * normal(24, 3, seed=1)
    alone = [torch.arange(24) != i for i in range(24)]
    by_others = [judged(torch.cat([samples[i : i + 1], samples[mask]]), real[mask]) for i, mask in enumerate(alone)]
    monkeypatch.setattr("ptq_diffusion.metric.distance.neighbours.CHUNK", 7)
    found = judged(samples, real, is_paired=True)
    for name in ("precision", "density"):
        assert torch.equal(found[name].parts, torch.stack([one[name].parts[0] for one in by_others]))


def test_float_images_beside_themselves_are_like_others_of_their_law():
    real = normal(400, 8)
    paired, apart = values(real, real.clone(), is_paired=True), values(normal(400, 8, seed=1), real)
    assert paired["density"] == pytest.approx(1, rel=1e-12)
    for name in ("precision", "recall"):
        assert paired[name] < 0.97 and paired[name] == pytest.approx(apart[name], abs=0.06)


@pytest.mark.parametrize("is_paired", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_the_change_from_leaving_each_image_out(name, is_paired):
    samples, real = normal(30, 3) * 1.2, normal(40, 3, seed=1)
    whole, without = judged(samples, real, is_paired=is_paired)[name], []
    for i in range(30):
        # Image i comes last, so that the others stay beside their pairs.
        order = torch.tensor([*(j for j in range(30) if j != i), i])
        ordered = torch.cat([real[order], real[30:]])
        without.append(judged(samples[order[:-1]], ordered, is_paired=is_paired)[name].value)
    assert torch.allclose(whole.parts, 30 * whole.value - 29 * torch.tensor(without, dtype=torch.float64), atol=1e-9)


def test_errors_are_those_of_independent_repetitions_or_somewhat_larger():
    """The jackknife of recall, no smooth function of the images, is on the careful side."""
    real = normal(300, 6, seed=99999)
    found = [judged(normal(120, 6, seed=s), real) for s in range(60)]
    for name in NAMES:
        spread = torch.tensor([one[name].value for one in found]).std()
        claimed = torch.tensor([one[name].parts.std() / 120**0.5 for one in found]).mean()
        assert 0.75 < claimed / spread < 1.8, name


@pytest.mark.parametrize("k", [0, 9, 10])
def test_neighbours_that_are_not_there_are_refused(k):
    with pytest.raises(ValueError, match=r"judging.neighbours in 1\.\.8 among 10 images"):
        Neighbourhoods.of(normal(10, 4), k)


def test_no_more_than_a_chunk_of_real_images_is_compared_at_once(monkeypatch):
    """A table of all samples and all real images would grow with both."""
    widths, inside = [], neighbours._within
    monkeypatch.setattr(neighbours, "CHUNK", 16)
    monkeypatch.setattr(neighbours, "_within", lambda *given: widths.append(inside(*given)[0].shape) or inside(*given))
    judged(normal(20, 3), normal(40, 3, seed=1))
    assert widths == [(20, 16), (20, 16), (20, 8)]
