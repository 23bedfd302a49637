"""Every bundled model is one word: with it come the reference and the feature space of its own images."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ptq_diffusion.command.check.bounds import Room
from ptq_diffusion.command.check.preflight import check
from ptq_diffusion.command.doctor import MODEL_CHECKSUMS
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.main import CONF
from ptq_diffusion.metric import paired_kid
from ptq_diffusion.model.loading import MODELS
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.reference import build_extractor
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples

NAMES = [MODELS.path(path).name for path in MODELS.names()]
every_model = pytest.mark.parametrize("name", NAMES)


def composed(*overrides):
    """With what the command line alone knows, the names that were chosen."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def test_every_one_has_a_configuration_and_a_checksum():
    assert list(MODEL_CHECKSUMS) == MODELS.names()
    chosen = {name: OmegaConf.load(CONF / "model" / f"{name}.yaml").path for name in NAMES}
    assert list(chosen.values()) == MODELS.names()


@every_model
def test_it_is_the_network_that_its_training_configures(name):
    training, model = OmegaConf.load(CONF / "training" / f"{name}.yaml"), construct(composed(f"model={name}").model)
    # Alone, or within what gives it its condition.
    network = training.network.get("unet") or training.network.get("transformer") or training.network
    asked, found = dict(construct(network).config), dict(model.network.config)
    assert {key: found[key] for key in asked if not key.startswith("_")} == {
        key: value for key, value in asked.items() if not key.startswith("_")
    }
    assert model.scheduler_config.items() >= {k: v for k, v in training.scheduler.items() if k != "_target_"}.items()


@every_model
def test_its_samples_are_far_nearer_to_its_reference_than_noise_is(name, tmp_path):
    cfg = composed(f"model={name}", "images=16", "seeds=[0]", "micro_batch=16", "sampler.steps=5")
    if "eta" in cfg.sampler:
        cfg.sampler.eta = 0.0
    shop = Workshop(Runtime("cpu", progress=False))
    check(cfg, Evaluate, shop, Room.unlimited())
    images = read_images(Store(tmp_path, shop).obtain(FullPrecisionSamples, cfg))
    extractor = build_extractor(cfg)
    real = construct(cfg.reference).statistics(extractor).vectors
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # KID, which is not biased by how few images there are beside the number of features
    vectors = {kind: extractor.features(x) for kind, x in (("near", images), ("far", noise))}
    found = paired_kid(vectors, real, 2, seed=0).estimates
    assert found["near"].value < 0.6 * found["far"].value


@every_model
def test_what_comes_with_it_is_replaced_by_what_is_asked_for(name):
    own = composed(f"model={name}")
    assert own.labels.feature == build_extractor(own).name
    words = [f"model={name}", "feature=pixels", "reference=none"]
    for asked in (composed(*words), composed(*reversed(words))):
        assert (asked.labels.feature, asked.model) == ("pixels", own.model)
        assert asked.reference == OmegaConf.load(CONF / "reference" / "none.yaml")
