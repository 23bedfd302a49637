"""Options that change no number of a stage's artefact are not in its signature, so that it is not made anew."""

import pytest

from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.engine import signature
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.signature import Signatures
from tests.engine.test_store import Digits, changed
from tests.experiments import composed

MEASURED = ("trajectories", "calibrate", "float_path", "step_signal", "offers", "changes", "sensitivity")
BEHIND = ("plan", "reconstruct", "activation_scales", "quantize", "noise", "fit", "samples_quantized")
BUDGET = ["bitwidth=budget", "bitwidth.weights=[3,4]", "rounding=gptq", "condition=labels", "correction=ptqd"]
BUDGET += ["condition.source.no_class=3", "condition.guidance.scale=2"]
INTEGERS = ["embedding@quantizer.embedding=integers"]
QUANTIZED = {"activation_scales", "quantize", "noise", "fit", "samples_quantized"}
FITTED = {"float_path", "step_signal", "changes", "sensitivity", "plan", "reconstruct"} | QUANTIZED
CHANGES = {
    "tables, to a budget of operations": ([], INTEGERS, QUANTIZED),
    "tables, to a budget of bytes": (["bitwidth.bytes=100000"], INTEGERS, QUANTIZED | {"plan", "reconstruct"}),
    "the budget": ([], ["bitwidth.saving=35"], QUANTIZED | {"plan", "reconstruct"}),
    "what no policy chooses": (
        [],
        ["bitwidth.last={weight: 6, activation: 6}"],
        QUANTIZED | {"step_signal", "plan", "reconstruct"},
    ),
    "bits of tables": (INTEGERS, ["quantizer.embedding.bits=3"], QUANTIZED),
    "the guidance that it is": ([], ["noise.guidance=2"], set()),
    "the guidance that it is, as a fraction": ([], ["noise.guidance=2.0"], set()),
    "another guidance": ([], ["noise.guidance=3"], FITTED),
}


@pytest.fixture
def signatures(tiny, tiny_model_folder):
    known = Signatures(Runtime("cpu", False))
    model = [f"model.path={tiny_model_folder(classes=4)}"]

    def of(*words, stages=(*MEASURED, *BEHIND)):
        cfg = composed(*tiny, *model, *BUDGET, *words)
        return {name: known.of(STAGES[name], cfg) for name in stages}

    return of


@pytest.mark.parametrize(("words", "more", "expected"), CHANGES.values(), ids=CHANGES)
def test_stages_are_made_anew_whose_numbers_change(signatures, words, more, expected):
    before, now = signatures(*words), signatures(*words, *more)
    assert {name for name in now if now[name] != before[name]} == expected


def test_float_paths_are_those_of_samplers_with_the_steps_and_the_guidance_of_the_fit(signatures):
    paths = [
        signatures(*words, stages=["float_path"])
        for words in (["noise.steps=6", "noise.guidance=3"], ["sampler.steps=6", "condition.guidance.scale=3"], [])
    ]
    assert paths[0] == paths[1] != paths[2]


def test_a_configuration_is_read_once_and_another_in_its_place_anew(monkeypatch):
    """Each lies where one before it lay, as nothing holds that any more."""
    known = Signatures(Runtime("cpu", False))
    found = {known.of(Digits, changed("a.number", number)) for number in range(20)}
    assert len(found) == 20
    cfg = changed("a.number", 0)
    assert known.of(Digits, cfg) in found
    monkeypatch.setattr(signature, "options_read", lambda *_: pytest.fail("it is read again"))
    assert known.of(Digits, cfg) in found
