"""Rounded statistics: what a bundled file is, and that rounding moves distances by far less than their errors."""

import pytest
import torch
from safetensors.torch import save_file

from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.metric import DataSetReference, EfficientNetLite0, FeatureMoments, Pixels, RealStatistics, ResNet9
from ptq_diffusion.metric.coarse_statistics import is_coarse, load_coarse, save_coarse
from ptq_diffusion.metric.distance.frechet import frechet_distance
from tests.metric.metrics import textures

EMOJI = "bundled:emoji"


@pytest.fixture(scope="module")
def extractor():
    return ResNet9("tiny", [4, 8, 8, 16], 10).eval()


@pytest.fixture(scope="module")
def exact(extractor):
    return RealStatistics.of_images(textures(200, seed=0), extractor)


@pytest.fixture(scope="module")
def step(exact):
    """As small as a byte allows."""
    return exact.vectors.max().item() / 255


@pytest.fixture(scope="module")
def efficientnet():
    return EfficientNetLite0()


def test_vectors_return_within_half_a_step_and_means_and_variances_exactly(exact, extractor, step, tmp_path):
    path = tmp_path / "coarse.safetensors"
    save_coarse(exact, path, step)
    loaded = load_coarse(path)
    assert is_coarse(path) and loaded.spatial is None and loaded.moments.extractor == exact.moments.extractor
    assert loaded.moments.count == 200 and torch.equal(loaded.moments.mean, exact.moments.mean)
    assert torch.equal(loaded.moments.covariance.diagonal(), exact.moments.covariance.diagonal())
    rounding = (loaded.vectors.double() - exact.vectors.double()).abs().max()
    assert rounding <= step / 2 + 2**-11 * exact.vectors.max()
    samples = FeatureMoments.of_images(textures(200, seed=1), extractor)
    before, after = (frechet_distance(samples, whole.moments) for whole in (exact, loaded))
    assert after == pytest.approx(before, rel=0.01)


def test_what_a_byte_cannot_hold_is_refused(exact, step, tmp_path):
    part = RealStatistics(exact.moments, None, exact.vectors[:100])
    below = RealStatistics(exact.moments, None, exact.vectors - 1)
    for statistics, unit in ((exact, step / 2), (part, step), (below, step)):
        with pytest.raises(ValueError, match="a larger step"):
            save_coarse(statistics, tmp_path / "coarse.safetensors", unit)
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind_are_refused(exact, tmp_path):
    exact.save(tmp_path / "exact.safetensors")
    save_file({"levels": torch.zeros(2, 2, dtype=torch.uint8)}, tmp_path / "part.safetensors")
    assert not is_coarse(tmp_path / "exact.safetensors")
    for name in ("exact", "part"):
        with pytest.raises(ValueError, match="expected levels, mean and variance"):
            load_coarse(tmp_path / f"{name}.safetensors")


def test_bundled_statistics_of_emoji_are_of_all_images_in_the_space_that_is_asked_for(efficientnet):
    for space in (efficientnet, Pixels()):
        reference = DataSetReference(EMOJI)
        reference.check(space, neighbours=5)
        real = reference.statistics(space)
        assert real.moments.extractor == space.checksum()
        assert real.moments.count == len(real.vectors) == 1852
        assert real.vectors.shape[1] == len(real.moments.mean) == space.num_features
        # The moments are stored beside the vectors, which have them up to rounding.
        assert torch.allclose(real.vectors.double().mean(0), real.moments.mean, atol=5e-3)
        spread = (real.moments.covariance - torch.cov(real.vectors.double().T)).abs().max()
        assert spread < 5e-3 * real.moments.covariance.diagonal().max()
        assert torch.linalg.eigvalsh(real.moments.covariance).min() > -1e-6 * real.moments.covariance.trace()


def test_each_space_of_a_data_set_has_a_checksum_of_its_own(efficientnet):
    """So that statistics in another space, added later, change no number's protocol."""
    reference = DataSetReference(EMOJI)
    found = {space.name: reference.checksum(space) for space in (efficientnet, Pixels())}
    expected = {name: files_digest([reference.path / f"{name}.safetensors"]) for name in found}
    assert found == expected and len(set(found.values())) == 2


def test_bundled_features_of_emoji_are_no_others(efficientnet):
    """White squares with a dark disc are nearer than noise, and far away."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    discs = [255 * ((x - 32) ** 2 + (y - 32) ** 2 > radius**2).expand(3, -1, -1) for radius in range(8, 24)]
    noise = torch.randint(256, (16, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    mean = DataSetReference(EMOJI).statistics(efficientnet).moments.mean
    near, far = (
        (efficientnet.features(images.to(torch.uint8)).double().mean(0) - mean).square().sum()
        for images in (torch.stack(discs), noise)
    )
    assert near < far


def test_a_space_without_bundled_statistics_is_refused(extractor):
    with pytest.raises(ValueError, match="efficientnet_lite0 or pixels, got tiny; set feature=efficientnet_lite0"):
        DataSetReference(EMOJI).check(extractor, neighbours=1)
    with pytest.raises(ValueError, match="got moments of"):
        DataSetReference(EMOJI).check(Pixels(size=2), neighbours=1)
    with pytest.raises(ValueError, match="bundled:emoji, got 'nothing'"):
        DataSetReference("nothing")
