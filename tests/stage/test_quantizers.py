"""Quantizers from the command line, all the way to corrected images."""

import pytest
import torch

from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.network import load_quantized
from tests.own_package import NAME

CASES = {
    "groups, tokens": [
        "quantizer@quantizer.weight=affine_per_group",
        "quantizer.weight.granularity.size=4",
        "quantizer@quantizer.activation=dynamic_per_token",
        "correction=rescaled",
    ],
    "skips, powers of two, ranges by step": [
        "quantizer@quantizer.activation=affine_per_skip",
        "quantizer@quantizer.softmax=log2",
        "bitwidth.attention={weight:8,activation:4}",
        "step_groups@quantizer.steps=clustered",
        "quantizer.steps.count=2",
        "quantizer.steps.exact=['*.time_emb_proj']",
        "correction=rescaled",
    ],
    "equalised, rounded": [
        "equalisation@quantizer.equalisation=smoothquant",
        "rounding=adaround",
        "rounding.descent.iterations=2",
        "correction=rescaled",
    ],
    "input channels, damage": [
        "equalisation@quantizer.equalisation=power_of_two",
        "quantizer.low_rank.rank=2",
        "quantizer@quantizer.activation=affine_per_input_channel",
        "bitwidth=budget",
        "bitwidth.saving=11",
        "bitwidth.activations=[3,8]",
        "sensitivity.images=2",
        "sampler.steps=2",
        "correction=ptqd",
    ],
}


def images(folder):
    return torch.cat([chunk["images"] for chunk in read_chunks(folder / "chunks")])


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_an_experiment_runs_with_it_to_the_end(shared, words):
    few = ["seeds=[0]", "images=2", "noise.images=8", "micro_batch=8", *words]
    quantized, corrected = (images(shared(f"goal=samples_{goal}", *few)) for goal in ("quantized", "corrected"))
    assert quantized.shape == corrected.shape and not torch.equal(quantized, corrected)


def test_a_part_of_low_rank_of_ones_own_needs_no_option_of_ours(shared, own_package):
    code = "class Two(LowRank):\n    def __init__(self) -> None:\n        super().__init__(2)\n"
    (own_package / NAME / "parts.py").write_text(f"from ptq_diffusion.quantizer import LowRank\n\n\n{code}")
    words = ["~quantizer.low_rank.rank", f"quantizer.low_rank._target_={NAME}.parts.Two", f"plugins=[{NAME}]"]
    own, ours = shared("goal=quantize", *words), shared("goal=quantize", "quantizer.low_rank.rank=2")
    assert load_quantized(own).fingerprint() == load_quantized(ours).fingerprint()


def test_one_group_of_steps_is_static(shared):
    few = ["goal=quantize"]
    default = load_quantized(shared(*few)).fingerprint()
    assert (
        load_quantized(shared(*few, "step_groups@quantizer.steps=given", "quantizer.steps.starts=[0]")).fingerprint()
        == default
    )
    by_step = load_quantized(shared(*few, "step_groups@quantizer.steps=equal", "quantizer.steps.count=3"))
    assert by_step.fingerprint() != default and {len(layer.settings) for layer in by_step.layers().values()} == {3}
