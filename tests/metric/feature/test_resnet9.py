"""A feature network is a deterministic function of images that a folder of safetensors and JSON restores exactly."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric import FEATURE_NETWORKS, FeatureMoments, ResNet9, frechet_distance

CONF = Path(__file__).parents[3] / "conf"
every_bundle = pytest.mark.parametrize("bundle", FEATURE_NETWORKS.names())


def network(seed=0):
    torch.manual_seed(seed)
    return ResNet9("tiny", [4, 8, 8, 16], 10).eval()


def byte_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@every_bundle
def test_what_is_bundled_is_what_the_training_configures(bundle):
    found = ResNet9.from_folder(bundle)
    configured = construct(OmegaConf.load(CONF / "training" / f"{found.name}.yaml").network)
    assert (configured.name, configured.widths) == (found.name, found.widths)
    assert FEATURE_NETWORKS.path(bundle).name == found.name
    assert sum(parameter.numel() for parameter in configured.parameters()) <= 900_000


def test_folder_round_trip_is_bit_exact_and_overwrites(tmp_path):
    network(1).save(tmp_path)
    saved = network()
    saved.save(tmp_path)
    loaded = ResNet9.load(tmp_path)
    images = byte_images(5, 3, 32, 32)
    assert loaded.checksum() == saved.checksum() != network(1).checksum()
    assert torch.equal(loaded(images), saved(images))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_a_folder_that_lacks_a_file_or_was_changed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_feature_network"):
        ResNet9.load(tmp_path)
    network().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"checksum": "0" * 16}))
    with pytest.raises(ValueError, match="checksum"):
        ResNet9.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"network": "inception"}))
    with pytest.raises(ValueError, match="expected a ResNet9 .*'inception'"):
        ResNet9.load(tmp_path)
    for key in config:
        (tmp_path / "config.json").write_text(
            json.dumps({name: value for name, value in config.items() if name != key})
        )
        with pytest.raises(ValueError, match=f"expected a ResNet9 .*'{key}'"):
            ResNet9.load(tmp_path)


def test_a_network_keeps_its_name_and_needs_one_that_fits_into_a_metric(tmp_path):
    ResNet9("other_2", [4, 4, 4, 4], 2).save(tmp_path)
    assert ResNet9.from_folder(str(tmp_path)).name == "other_2"
    for name in ("", "Net", "a/b", "fid net"):
        with pytest.raises(ValueError, match="small letters, digits and underscores"):
            ResNet9(name, [4, 4, 4, 4], 2)


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


@every_bundle
def test_bundled_network_is_the_one_its_reference_was_taken_with(bundle):
    net = ResNet9.from_folder(bundle)
    reference = FeatureMoments.load(FEATURE_NETWORKS.path(bundle, "reference.safetensors"))
    reference.require(net.checksum())
    assert reference.count >= 50_000 and len(reference.mean) == net.num_features
    assert torch.linalg.eigvalsh(reference.covariance).min() > 0
    assert frechet_distance(reference, reference) < 1e-6
    assert not any(parameter.requires_grad for parameter in net.parameters())


@every_bundle
def test_bundled_network_is_deterministic_and_noise_is_far_from_its_reference(bundle):
    images = byte_images(256, 3, 32, 32)
    net, again = ResNet9.from_folder(bundle), ResNet9.load(FEATURE_NETWORKS.path(bundle))
    assert torch.equal(net.features(images), again.features(images))
    reference = FeatureMoments.load(FEATURE_NETWORKS.path(bundle, "reference.safetensors"))
    noise = FeatureMoments.of_images(images, net)
    assert frechet_distance(noise, reference) > reference.covariance.trace() / 4
