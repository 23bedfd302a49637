"""A feature network is a deterministic function of images that a folder of safetensors and JSON restores exactly."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.metric import Cifar10Net, FeatureMoments, bundled, frechet_distance
from ptq_diffusion.stage.factory import construct

CONF = Path(__file__).parents[2] / "conf"


def network(seed=0):
    torch.manual_seed(seed)
    return Cifar10Net([4, 8, 8, 16], 10).eval()


def byte_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_configured_network_has_128_features_and_stays_small():
    configured = construct(OmegaConf.load(CONF / "training" / "cifar10net.yaml").network)
    assert configured.num_features == 128
    assert sum(parameter.numel() for parameter in configured.parameters()) <= 900_000


def test_folder_round_trip_is_bit_exact_and_overwrites(tmp_path):
    network(1).save(tmp_path)
    saved = network()
    saved.save(tmp_path)
    loaded = Cifar10Net.load(tmp_path)
    images = byte_images(5, 3, 32, 32)
    assert loaded.checksum() == saved.checksum() != network(1).checksum()
    assert torch.equal(loaded(images), saved(images))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_a_folder_that_lacks_a_file_or_was_changed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_feature_network"):
        Cifar10Net.load(tmp_path)
    network().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"checksum": "0" * 16}))
    with pytest.raises(ValueError, match="checksum"):
        Cifar10Net.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"network": "inception"}))
    with pytest.raises(ValueError, match="inception"):
        Cifar10Net.load(tmp_path)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_bytes_and_their_fractions_have_the_same_features(size):
    images = byte_images(3, 3, size, size)
    features = network()(images)
    assert features.shape == (3, 16) and features.dtype == torch.float32
    assert torch.equal(features, network()(images.float() / 255))
    assert torch.allclose(features, network()(images.double() / 255), rtol=1e-5, atol=1e-6)


def test_grey_images_are_those_with_three_equal_channels():
    grey = byte_images(3, 1, 28, 28)
    assert torch.equal(network()(grey), network()(grey.expand(-1, 3, -1, -1)))


def test_batches_do_not_matter_and_the_mode_is_restored():
    net, images = network().train(), byte_images(300, 3, 8, 8)
    before = net.checksum()
    features = net.features(images)
    assert net.training and net.checksum() == before
    assert not features.requires_grad
    assert torch.allclose(features[280:], net.eval()(images[280:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", [torch.zeros(2, 4, 32, 32), torch.zeros(3, 32, 32), torch.zeros(2, 3, 7, 32)])
def test_other_shapes_are_refused(images):
    with pytest.raises(ValueError, match="expected images"):
        network()(images)


def test_integers_that_are_not_bytes_are_refused():
    with pytest.raises(ValueError, match="int64"):
        network()(torch.zeros(2, 3, 32, 32, dtype=torch.long))


def test_bundled_network_is_the_one_its_reference_was_taken_with():
    net = Cifar10Net.from_folder(None)
    reference = FeatureMoments.load(bundled() / "reference.safetensors")
    reference.require(net.checksum())
    assert reference.count == 50_000 and len(reference.mean) == net.num_features == 128
    assert torch.linalg.eigvalsh(reference.covariance).min() > 0
    assert frechet_distance(reference, reference) < 1e-6
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_bundled_network_is_deterministic_and_noise_is_far_from_its_reference():
    images = byte_images(256, 3, 32, 32)
    net, again = Cifar10Net.from_folder(None), Cifar10Net.load(bundled())
    assert torch.equal(net.features(images), again.features(images))
    reference = FeatureMoments.load(bundled() / "reference.safetensors")
    noise = FeatureMoments.of_images(images, net)
    assert frechet_distance(noise, reference) > reference.covariance.trace() / 4
