"""The papers' recipes: what their first lines say is what is composed, and each runs."""

import re
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[3] / "conf"
RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml") if path.stem != "none")
WORD = re.compile(r"^#   (?P<key>[\w.@]+)=(?P<value>.+?)(?:: .+)?$", re.MULTILINE)
"""A line of what a recipe consists of: a word of a command line and, behind a colon, what it means."""
TINY = [
    *("calibration.images=2", "sampler.steps=2", "images=1", "seeds=[0]", "micro_batch=2", "noise.images=2"),
    *("rounding.descent.iterations=1", "rounding.calls=1", "correction=none", "goal=samples_corrected"),
]
QUICK = {
    "quantizer.weight.range_search.candidates": 2,
    "quantizer.activation.range_search.candidates": 2,
    "activation_scales.iterations": 1,
    "activation_scales.calls": 1,
}
"""Options that make a recipe quick that has them."""


@cache
def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(words), return_hydra_config=True)


def said(recipe):
    """The words that a recipe's file says it consists of."""
    return {match["key"]: match["value"] for match in WORD.finditer((CONF / "recipe" / f"{recipe}.yaml").read_text())}


def quick(recipe):
    """The words that make a recipe quick."""
    cfg = composed(f"recipe={recipe}")
    return [f"{key}={value}" for key, value in QUICK.items() if OmegaConf.select(cfg, key) is not None]


def leaves(node, prefix=""):
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_what_its_first_lines_say(recipe):
    words, cfg = said(recipe), composed(f"recipe={recipe}")
    choices = {key for key in words if key in cfg.hydra.runtime.choices}
    assert {key: words[key] for key in choices} == {key: cfg.hydra.runtime.choices[key] for key in choices}
    options = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    assert {key: options[key] for key in words.keys() - choices} == {key: words[key] for key in words.keys() - choices}
    # The file does nothing that its first lines leave out.
    body = OmegaConf.to_container(OmegaConf.load(CONF / "recipe" / f"{recipe}.yaml"), resolve=False)
    overridden = {key.removeprefix("override /") for entry in body.pop("defaults") for key in entry}
    assert overridden <= choices and dict(leaves(body)).items() <= words.items()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_where_it_departs_and_lets_single_choices_be_replaced(recipe):
    text = (CONF / "recipe" / f"{recipe}.yaml").read_text()
    assert "Departs from" in text and "arXiv" in text
    cfg = composed(f"recipe={recipe}", "rounding=gptq", "bitwidth=w4a6", "calibration_set=uniform")
    assert cfg.rounding.damping and cfg.calibration_set == {"_target_": "ptq_diffusion.data.UniformSet"}
    assert cfg.bitwidth.attention in ({"weight": 6, "activation": 6}, {"weight": 32, "activation": 32})


def test_attention_has_8_bits_where_a_policy_decides_those_of_activations_and_none_chooses_nothing():
    cfg = composed("recipe=q_diffusion", "bitwidth=budget")
    assert cfg.bitwidth.attention == {"weight": 8, "activation": 8}
    assert OmegaConf.load(CONF / "recipe" / "none.yaml") == {} and composed().hydra.runtime.choices.recipe == "none"


def test_every_recipe_draws_images_and_they_share_what_they_have_in_common(make, tmp_path):
    images = {make(f"recipe={recipe}", *TINY, *quick(recipe)).name for recipe in RECIPES}
    assert len(images) == len(RECIPES), "none is another's"
    store = tmp_path / "outputs" / "store"
    assert len([path for path in (store / "trajectories").iterdir() if path.is_dir()]) == 1
    assert len([path for path in (store / "reconstruct").iterdir() if path.is_dir()]) == len(RECIPES)
