"""The Fréchet distance is exact for Gaussians, equal to torchmetrics', and independent of how features arrive."""

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.image.fid import FrechetInceptionDistance

from ptq_diffusion.metric import FeatureMoments, ResNet9, frechet_distance


def features(count, width=6, seed=0, shift=0.0):
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=draw) @ mixing + shift


def gaussian(mean, covariance, extractor="x"):
    return FeatureMoments(1000, torch.tensor(mean).double(), torch.tensor(covariance).double(), extractor)


def test_equals_torchmetrics():
    torch.manual_seed(0)
    net = ResNet9("tiny", [4, 8, 8, 16], 10).eval()
    draw = torch.Generator().manual_seed(1)
    real = torch.randint(256, (300, 3, 16, 16), generator=draw, dtype=torch.uint8)
    fake = torch.randint(30, 200, (260, 3, 16, 16), generator=draw, dtype=torch.uint8)
    incumbent = FrechetInceptionDistance(feature=net)
    with torch.no_grad():
        incumbent.update(real, real=True)
        incumbent.update(fake, real=False)
    ours = frechet_distance(FeatureMoments.of_images(fake, net), FeatureMoments.of_images(real, net))
    assert ours == pytest.approx(incumbent.compute().item(), rel=1e-4)


def test_exact_for_diagonal_gaussians():
    a = gaussian([1.0, -2.0, 0.0], [[4.0, 0, 0], [0, 1.0, 0], [0, 0, 9.0]])
    b = gaussian([0.0, 0.0, 0.5], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0.25]])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 0.25 + 1 + 0 + 2.5**2, rel=1e-12)


def test_exact_for_gaussians_whose_covariances_do_not_commute():
    a, b = gaussian([0.0, 0.0], [[2.0, 0.5], [0.5, 1.0]]), gaussian([3.0, 4.0], [[1.0, -0.7], [-0.7, 3.0]])
    product = a.covariance @ b.covariance
    overlap = (product.trace() + 2 * product.det().sqrt()).sqrt()  # trace of the root of a 2x2 matrix
    expected = 25 + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_zero_for_the_same_moments_even_where_the_covariance_is_singular():
    for count in (4, 500):
        moments = FeatureMoments.of(features(count), "x")
        assert 0 <= frechet_distance(moments, moments) < 1e-6


@pytest.mark.parametrize("split", [1, 7, 100, 499])
def test_streaming_does_not_depend_on_the_split(split):
    rows = features(500, shift=100.0)
    whole, streamed = FeatureMoments.of(rows, "x"), FeatureMoments.of_batches(rows.split(split), "x")
    assert streamed.count == whole.count
    assert torch.allclose(streamed.mean, whole.mean, rtol=1e-12)
    assert torch.allclose(streamed.covariance, whole.covariance, rtol=1e-9)
    assert torch.allclose(whole.covariance, rows.double().T.cov(), rtol=1e-9)


def test_root_squares_to_the_covariance():
    moments = FeatureMoments.of(features(500), "x")
    assert torch.allclose(moments.root @ moments.root, moments.covariance, atol=1e-10)


def test_moments_of_another_extractor_are_refused():
    rows = features(50)
    with pytest.raises(ValueError, match="reference_statistics"):
        frechet_distance(FeatureMoments.of(rows, "x"), FeatureMoments.of(rows, "y"))


def test_file_round_trip_is_bit_exact(tmp_path):
    moments = FeatureMoments.of(features(50), "abc")
    moments.save(tmp_path / "m.safetensors")
    loaded = FeatureMoments.load(tmp_path / "m.safetensors")
    assert (loaded.count, loaded.extractor) == (50, "abc")
    assert torch.equal(loaded.mean, moments.mean) and torch.equal(loaded.covariance, moments.covariance)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="reference_statistics"):
        FeatureMoments.load(tmp_path / "m.safetensors")
    ResNet9("tiny", [4, 4, 4, 4], 2).save(tmp_path)
    with pytest.raises(ValueError, match="expected mean, covariance"):
        FeatureMoments.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("count", ["", "[3]", "-5", "many"])
def test_moments_of_no_count_or_of_other_shapes_are_refused(tmp_path, count):
    moments = FeatureMoments.of(features(50), "x")
    tensors = {"mean": moments.mean, "covariance": moments.covariance}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, {"count": count, "extractor": "x"})
    with pytest.raises(ValueError, match="expected a count, .*reference_statistics"):
        FeatureMoments.load(path)
    for other in ({"mean": moments.covariance}, {"covariance": moments.mean}, {"mean": moments.mean[:3]}):
        copies = {name: tensor.clone() for name, tensor in (tensors | other).items()}
        save_file(copies, path, {"count": "50", "extractor": "x"})
        with pytest.raises(ValueError, match="expected a count, .*reference_statistics"):
            FeatureMoments.load(path)


def test_too_few_and_broken_features_are_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        FeatureMoments.of(features(1), "x")
    with pytest.raises(ValueError, match="at least 2 images"):
        FeatureMoments.of_batches([], "x")
    with pytest.raises(ValueError, match="finite"):
        FeatureMoments.of(torch.full((4, 2), torch.nan), "x")
