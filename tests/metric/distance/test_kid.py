"""KID equals torchmetrics', is unbiased, and knows which rows come from the same noise."""

from functools import partial

import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from ptq_diffusion.metric import ResNet9, paired_kid, paired_kid_to
from ptq_diffusion.metric.distance.kid import polynomial_kernel


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equals_torchmetrics():
    net = ResNet9.from_folder("bundled:cifar10net")
    draw = torch.Generator().manual_seed(1)
    real = torch.randint(256, (60, 3, 16, 16), generator=draw, dtype=torch.uint8)
    fake = torch.randint(30, 200, (60, 3, 16, 16), generator=draw, dtype=torch.uint8)
    incumbent = KernelInceptionDistance(feature=net, subsets=1, subset_size=60)
    with torch.no_grad():
        incumbent.update(real, real=True)
        incumbent.update(fake, real=False)
    ours = paired_kid({"a": net.features(fake)}, net.features(real), 2, 0).estimates["a"].value
    assert ours == pytest.approx(incumbent.compute()[0].item(), rel=1e-3)


def test_unbiased_zero_in_expectation_between_samples_of_one_distribution():
    found = torch.tensor(
        [
            paired_kid({"a": normal(40, 4, seed=s)}, normal(50, 4, seed=s + 500), 2, 0).estimates["a"].value
            for s in range(200)
        ]
    )
    assert abs(found.mean()) < 3 * found.std() / 200**0.5
    assert (found < 0).any() and (found > 0).any()


def test_the_order_of_images_does_not_matter():
    rows, real = normal(50, 4), normal(70, 4, seed=1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    first, again = (paired_kid({"a": x}, y, 2, 0).estimates["a"].value for x, y in ((rows, real), (rows[order], real)))
    assert first == pytest.approx(again, abs=1e-12)


def test_chunks_of_pairs_are_all_pairs(monkeypatch):
    rows = {"a": normal(50, 4), "b": normal(50, 4, seed=1)}
    whole = paired_kid(rows, normal(30, 4, seed=2), 5, 0), paired_kid_to("a", rows, 5, 0)
    monkeypatch.setattr("ptq_diffusion.metric.distance.kid.CHUNK", 7)
    parts = paired_kid(rows, normal(30, 4, seed=2), 5, 0), paired_kid_to("a", rows, 5, 0)
    for one, other in zip(whole, parts, strict=True):
        assert one.estimates["b"].value == pytest.approx(other.estimates["b"].value, abs=1e-12)
        assert one.estimates["b"].standard_error == pytest.approx(other.estimates["b"].standard_error, abs=1e-12)


def test_an_image_is_never_its_own_pair():
    """Against the definition, pair by pair."""
    a, b = normal(6, 3).double(), normal(6, 3, seed=1).double()
    found = paired_kid_to("b", {"a": a, "b": b}, 2, 0).estimates
    k = polynomial_kernel
    h = k(a, a) + k(b, b) - k(a, b) - k(b, a)
    assert found["a"].value == pytest.approx(((h.sum() - h.trace()) / 30).item(), rel=1e-12)
    assert (found["b"].value, found["b"].standard_error) == (0, 0)


def test_unbiased_to_a_variant_whose_rows_are_paired():
    """Shared noise makes row i of both alike; a mean that kept these pairs would be below zero."""
    found = []
    for seed in range(200):
        a = normal(40, 4, seed=seed)
        near = (a + normal(40, 4, seed=seed + 500)) / 2**0.5
        found.append(paired_kid_to("a", {"a": a, "b": near}, 2, 0).estimates["b"].value)
    found = torch.tensor(found)
    assert abs(found.mean()) < 3 * found.std() / 200**0.5


def test_errors_are_those_of_independent_repetitions():
    real = normal(400, 4, seed=9999)
    found = [paired_kid({"a": normal(150, 4, seed=s) + 0.5}, real, 50, 0).estimates["a"] for s in range(40)]
    spread = torch.tensor([one.value for one in found]).std()
    assert 0.7 < torch.tensor([one.standard_error for one in found]).mean() / spread < 1.4


@pytest.mark.parametrize("variant", ["a", "b"])
def test_errors_are_those_of_leaving_each_image_out(variant):
    """The jackknife's, up to the bootstrap of the parts."""
    rows, real = {"a": normal(25, 4), "b": normal(25, 4, seed=1) * 1.5}, normal(30, 4, seed=2)
    for metric in (partial(paired_kid, real=real), partial(paired_kid_to, "a")):
        kept = [{name: torch.cat([x[:i], x[i + 1 :]]) for name, x in rows.items()} for i in range(25)]
        without = torch.tensor(
            [metric(one, replicates=2, seed=0).estimates[variant].value for one in kept], dtype=torch.float64
        )
        expected = (24 / 25 * (without - without.mean()).square().sum()).sqrt()
        # drawing N of N parts has a factor of (N - 1) / N in its variance
        found = metric(rows, replicates=4000, seed=0).estimates[variant].standard_error / (24 / 25) ** 0.5
        assert found == pytest.approx(expected.item(), rel=0.05, abs=1e-12)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(M >= 2, 4\)"):
        paired_kid({"a": normal(10, 4)}, normal(10, 3), 5, 0)
