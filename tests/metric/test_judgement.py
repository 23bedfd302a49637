"""All metrics together, on textures whose degradation every one of them must see, and the statistics of real images."""

import pytest
import torch

from ptq_diffusion.metric import (
    FEATURE_NETWORKS,
    FeatureMoments,
    Features,
    NoReference,
    Pixels,
    RealStatistics,
    ResNet9,
    Settings,
    paired_kid,
)
from ptq_diffusion.metric.protocol import FORMULAS_TO_FLOAT
from ptq_diffusion.metric.real_statistics import STORED, stored_rows
from tests.metric.metrics import METRICS, Textures, blurred, judged, textures

SETTINGS = Settings(replicates=20, seed=0, neighbours=3, seeds=[0, 1])


@pytest.fixture(scope="module")
def textured():
    images = textures(160, seed=0)
    variants = {"full_precision": images, "mild": blurred(images, 4), "strong": blurred(images, 16)}
    return judged(variants, ResNet9.from_folder("bundled:cifar10net"), Textures(), METRICS, SETTINGS)


def test_blur_worsens_every_metric(textured):
    full, mild, strong = textured.rows.values()
    for name in ("fid", "sfid", "kid", "fid_to_fp", "kid_to_fp", "feature_distance_to_fp"):
        assert full[name] < mild[name] < strong[name], name
    for name in ("precision", "recall", "density", "coverage"):
        assert full[name] > mild[name] >= strong[name], name
    for name in ("psnr_to_fp", "ssim_to_fp"):
        assert full[name] is None and mild[name] > strong[name], name


def test_every_interval_has_its_error_and_what_it_could_detect(textured):
    assert {pair["metric"] for pair in textured.paired} == {
        name for name in textured.rows["mild"] if name[-3:] != "_se"
    }
    for pair in textured.paired:
        assert pair["high"] - pair["low"] == pytest.approx(2 * 1.96 * pair["standard_error"])
        assert pair["detectable"] == pytest.approx(2.8016 * pair["standard_error"])
        assert pair["seed_spread"] >= 0


def test_without_real_images_the_float_variant_is_the_reference():
    images = textures(40, seed=0)
    variants = {"full_precision": images, "mild": blurred(images, 4)}
    found = judged(variants, ResNet9.from_folder("bundled:cifar10net"), NoReference(), METRICS, SETTINGS)
    for row in found.rows.values():
        assert (row["fid"], row["kid"]) == (row["fid_to_fp"], row["kid_to_fp"])
    assert found.rows["full_precision"]["sfid"] == pytest.approx(0, abs=1e-6) and found.rows["mild"]["sfid"] > 0.01
    assert found.rows["full_precision"]["coverage"] == 1
    assert found.rows["full_precision"]["density"] == pytest.approx(1), "no image is beside itself"
    assert found.protocol["formulas"] == FORMULAS_TO_FLOAT
    assert found.protocol["against"] == "the full-precision samples"


def test_an_extractor_without_classes_or_maps_has_no_such_numbers():
    variants = {"full_precision": textures(40, seed=0), "other": textures(40, seed=2)}
    found = judged(variants, Pixels(3, 4), NoReference(), METRICS, SETTINGS)
    lacking = {name for name, value in found.rows["other"].items() if value is None}
    assert lacking == {"sfid", "sfid_se", "classifier_score", "classifier_score_se"}
    assert not {pair["metric"] for pair in found.paired} & lacking


def test_features_of_images_do_not_depend_on_their_batch_and_return_from_a_file(tmp_path):
    net, images = ResNet9.from_folder("bundled:cifar10net"), textures(300, seed=0)
    whole, part = net.extract(images), net.extract(images[290:])
    assert torch.allclose(whole.spatial[290:], part.spatial, rtol=1e-4, atol=1e-5)
    assert torch.allclose(whole.probabilities.sum(1), torch.ones(300))
    assert whole.spatial.shape == (300, 128) and torch.equal(whole.vectors, net.features(images))
    whole.save(tmp_path / "f.safetensors", net.checksum())
    loaded = Features.load(tmp_path / "f.safetensors", net.checksum())
    assert all(torch.equal(getattr(loaded, name), getattr(whole, name)) for name in vars(whole))
    with pytest.raises(ValueError, match="one extractor"):
        Features.load(tmp_path / "f.safetensors", "another")
    with pytest.raises(FileNotFoundError, match="evaluate the run again"):
        Features.load(tmp_path / "g.safetensors", net.checksum())


def test_real_statistics_return_from_a_file_that_holds_their_moments(tmp_path):
    net, path = ResNet9("tiny", [4, 8, 8, 16], 10).eval(), tmp_path / "r.safetensors"
    found = RealStatistics.of_images(textures(50, seed=0), net)
    found.save(path)
    loaded, moments = RealStatistics.load(path), FeatureMoments.load(path)
    assert torch.equal(loaded.vectors, found.vectors) and torch.equal(
        loaded.spatial.covariance, found.spatial.covariance
    )
    assert torch.equal(moments.covariance, FeatureMoments.of_images(textures(50, seed=0), net).covariance)
    moments.save(path)
    with pytest.raises(ValueError, match="make the statistics again with goal=reference_statistics"):
        RealStatistics.load(path)
    RealStatistics.of_images(textures(50, seed=0), Pixels(3, 4)).save(path)
    assert RealStatistics.load(path).spatial is None


def test_which_vectors_are_kept_is_fixed_spread_and_all_of_few():
    rows = stored_rows(50_000)
    assert len(rows) == STORED == len(rows.unique()) and torch.equal(rows, stored_rows(50_000))
    assert torch.histc(rows.float(), 10, 0, 50_000).min() > 350
    assert torch.equal(stored_rows(100), torch.arange(100))


def test_bundled_vectors_are_those_of_the_bundled_moments_and_their_precision_does_not_matter():
    """As far as 4,096 of 50,000 can show; rounding moves a distance by far less than its error."""
    real = RealStatistics.load(FEATURE_NETWORKS.path("bundled:cifar10net", "reference.safetensors"))
    vectors = real.vectors.double()
    error = real.moments.covariance.diagonal().sqrt() / STORED**0.5
    assert ((vectors.mean(0) - real.moments.mean).abs() < 5 * error).all()
    assert real.spatial.count == real.moments.count == 50_000
    samples = {"a": vectors[:400].float() * 1.1}
    nudged = vectors * (1 + 2**-11 * (2 * torch.rand(vectors.shape, generator=torch.Generator().manual_seed(0)) - 1))
    rounded, exact = (paired_kid(samples, rows, 20, 0).estimates["a"] for rows in (vectors, nudged))
    assert abs(rounded.value - exact.value) < 0.02 * exact.standard_error
