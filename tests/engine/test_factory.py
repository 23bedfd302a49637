"""A configuration constructs our classes and those of a few libraries, and nothing else."""

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.data import Prompts
from ptq_diffusion.engine.factory import construct, names_kind
from tests.experiments import composed

BEHIND_OURS = [
    "ptq_diffusion.stage.training.checkpoint.torch.load",
    "ptq_diffusion.stage.training.checkpoint.shutil.rmtree",
    "torch.optim.adam.torch.load",
    "ptq_diffusion.numeric.grid.FLOAT_BITS",
    "ptq_diffusion.artefact.files.replace",
    "diffusers.utils.dynamic_modules_utils.get_class_in_module",
    "diffusers.DiffusionPipeline.from_pretrained",
]


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.load", "subprocess.run", *BEHIND_OURS])
def test_a_configuration_constructs_nothing_outside_the_allowlist(target):
    with pytest.raises(ValueError, match="_target_"):
        construct(OmegaConf.create({"inner": {"_target_": target}, "_target_": "ptq_diffusion.sampler.DDIM"}))


def test_the_kind_of_a_part_is_known_without_building_it(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    sources = {
        True: {"_target_": "ptq_diffusion.data.TextPrompts", "path": str(tmp_path / "prompts.txt")},
        False: {"_target_": "ptq_diffusion.data.Labels", "only": None, "no_class": None},
    }
    for expected, source in sources.items():
        node = OmegaConf.create(source)
        assert names_kind(node, Prompts) is expected is isinstance(construct(node), Prompts)
    absent = OmegaConf.create(sources[True] | {"path": "nowhere"})
    assert names_kind(absent, Prompts) and not names_kind(
        OmegaConf.create(sources[True] | {"_partial_": True}), Prompts
    )
    with pytest.raises(ValueError, match="_target_"):
        names_kind(OmegaConf.create({"_target_": "os.system"}), Prompts)


PARTS = {
    "granularity": {"_target_": "ptq_diffusion.quantizer.AffineQuantizer", "_partial_": True},
    "inputs": {"_target_": "ptq_diffusion.rounding.GPTQ"},
    "descent": {"_target_": "ptq_diffusion.rounding.AdaRound", "inputs": "${inputs}"},
    "weights": {"_target_": "ptq_diffusion.rounding.BRECQ", "path": "float", "descent": None},
}
"""Targets by an option of theirs that is a value of a class of ours, a dataclass all but once."""


@pytest.mark.parametrize("value", [None, 3, "x", [1], {"axis": 1}], ids=str)
@pytest.mark.parametrize("key", PARTS)
def test_an_option_that_is_to_be_an_object_is_no_other_value(key, value):
    inputs = {"_target_": "ptq_diffusion.rounding.Inputs", "path": "float", "target": "weight", "offsets": False}
    inputs["weights"] = {"_target_": "ptq_diffusion.rounding.UniformSteps"}
    cfg = OmegaConf.create({"inputs": inputs, "part": {key: value} | PARTS[key]})
    with pytest.raises(ValueError, match=f"expected {key} of [A-Za-z]+ to be an instance of [A-Za-z]+, got .*; give"):
        construct(cfg.part)


@pytest.mark.parametrize("value", ["x", 3, None], ids=str)
def test_an_option_that_is_to_be_a_list_is_no_other_value(value):
    cfg = composed("bitwidth=w4a4")
    cfg.bitwidth.patterns = value
    with pytest.raises(ValueError, match=f"expected patterns of ByRole to be a list, got {value!r}; give another"):
        construct(cfg.bitwidth)


@pytest.mark.parametrize(
    ("words", "part", "end"),
    [
        (["sampler.eta=1.5"], "sampler", r"\[0, 1\], got 1.5; change options of sampler"),
        (["quantizer.weight.range_search.p=-1"], "quantizer.weight", "p=-1; change options of quantizer.weight.range_"),
        (["correction=auto", "trial.images=1"], "correction", "; set trial.images and trial.seed"),
    ],
)
def test_an_error_without_advice_says_whose_options_to_change(words, part, end):
    """A constructor does not know its place in the configuration; what gives advice of its own stays as it is."""
    cfg = composed(*words)
    with pytest.raises(ValueError, match=rf"{end}\w*$"):
        construct(OmegaConf.select(cfg, part))
