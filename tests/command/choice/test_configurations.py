"""Every configuration composes, and everything that it names can be built and run."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct

CONF = Path(__file__).parents[3] / "conf"
GROUPS = {
    "model": "model",
    "condition": "condition",
    "sampler": "sampler",
    "bitwidth": "bitwidth",
    "calibration_set": "calibration_set",
    "rounding": "rounding",
    "activation_scales": "activation_scales",
    "backend": "backend",
    "correction": "correction",
    "feature": "feature",
    "metric": None,
    "reference": "reference",
    "logger": "logger",
    "quantizer": "quantizer@quantizer.weight",
    "range_search": "range_search@quantizer.activation.range_search",
    "step_groups": "step_groups@quantizer.steps",
    "equalisation": "equalisation@quantizer.equalisation",
    "low_rank": "low_rank@quantizer.low_rank",
    "embedding": "embedding@quantizer.embedding",
    "gain": "gain@correction.candidates.rescaled_matched.links.rescaled.gain",
    "layer_order": "layer_order@correction.candidates.rescaled_matched.links.rescaled.order",
    "gain_steps": "gain_steps@correction.candidates.rescaled_matched.links.rescaled.steps",
    "shift": "shift@correction.candidates.rescaled_matched.links.rescaled.shift",
    "data": "data",
    "training": "training",
}
NOT_DEFAULT = ("clip_score",)
WHOLE = ("experiment", "recipe")  # choose files of other groups
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in WHOLE]
WHOLES = [(group, path.stem) for group in WHOLE for path in sorted(CONF.glob(f"{group}/*.yaml"))]


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def test_every_group_is_known():
    assert {group for group, _ in OPTIONS} == set(GROUPS)


@pytest.mark.parametrize(("group", "name"), WHOLES)
def test_every_experiment_and_every_recipe_composes(group, name):
    cfg = composed(f"{group}={name}")
    assert cfg.goal


def _rescales(node):
    node.links.matched.update(path="float", images=None)  # On which gains of all steps are pooled
    rescaled = construct(node).links["rescaled"]
    assert rescaled.images_for_rescaling == 64
    shift = rescaled.shift
    assert shift.shifts == (bool(shift.of(torch.ones(2, 3)).any()) or shift.fractions(1, 3) is not None)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_builds(group, option, tiny_model_folder):
    place = GROUPS[group] or f"{group}@{group}.{option}"
    # Hydra takes in what the default experiment lacks by a + alone.
    cfg = composed(f"{'+' * (option in NOT_DEFAULT)}{place}={option}")
    for key in ("model", "reference", "data"):
        node = cfg.get(key)
        for name in ("path", "folder"):
            if node is not None and OmegaConf.is_missing(node, name):
                node[name] = str(tiny_model_folder() if key == "model" else Path(__file__))
    for node in cfg.metric.values():
        if OmegaConf.is_missing(node, "path"):
            node.path = "FOLDER"
    if group == "quantizer":
        assert construct(cfg.quantizer.weight)(4).grid.bits == 4
    elif group == "condition":
        for name in ("path", "folder"):
            if cfg.condition.source is not None and OmegaConf.is_missing(cfg.condition.source, name):
                cfg.condition.source[name] = "FILE"
        assert cfg.condition.source is None or construct(cfg.condition.source)
    elif group == "step_groups":
        assert construct(cfg.quantizer.steps).observed("conv_in", 20)
    elif group == "equalisation":
        assert construct(cfg.quantizer.equalisation).factors(torch.ones(2), torch.ones(2)).tolist() == [1, 1]
    elif group in ("shift", "gain", "layer_order", "gain_steps"):
        _rescales(cfg.correction.candidates.rescaled_matched)
    elif group == "embedding":
        assert construct(cfg.quantizer.embedding).bits in (4, 32)
    elif group == "low_rank":
        assert construct(cfg.quantizer.low_rank).rank >= 0
    elif group == "range_search":
        assert construct(cfg.quantizer.activation.range_search)
    elif group == "training":
        assert construct(cfg.training.network)
        assert "augmentation" not in cfg.training or construct(cfg.training.augmentation)
    elif group == "metric":
        assert construct(cfg.metric[option]).name == option
    elif group == "feature":
        assert construct(cfg.feature.extractor).num_features <= 1280
    else:
        assert construct(cfg[group])


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_opens_with_the_words_that_choose_it(path):
    words = [line for line in path.read_text().splitlines() if line.startswith("#")][:2]
    assert any("=" in line and path.stem in line for line in words), "say what it is and how it is chosen"
