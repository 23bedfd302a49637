"""Advice on corrections and guidance is said where the two were chosen together, and nowhere else."""

import pytest

from ptq_diffusion.command.check.advice import guidance_advice
from ptq_diffusion.engine.factory import construct
from tests.correction.presets import FILES

MAPS_ARE_AMPLIFIED = "compare correction=rescaled_guided_matched"
NO_DIFFERENCES = "without guidance there are no differences"


@pytest.mark.parametrize(
    ("correction", "scale", "fitted_elsewhere", "said"),
    [
        ("matched", 3, False, MAPS_ARE_AMPLIFIED),
        ("rescaled_matched", 7, False, MAPS_ARE_AMPLIFIED),
        ("rescaled_matched", 7, True, ""),
        ("rescaled_matched", 1.5, False, ""),
        ("rescaled_matched", 1, False, ""),
        ("rescaled", 7, False, ""),
        ("ptqd", 7, False, ""),
        ("auto", 7, False, ""),
        ("auto", 1, False, ""),
        ("rescaled_guided_matched", 7, False, ""),
        ("rescaled_guided_matched", 1, False, NO_DIFFERENCES),
        ("rescaled_guided_ptqd", 1, False, NO_DIFFERENCES),
    ],
)
def test_advice(correction, scale, fitted_elsewhere, said):
    chosen = construct(FILES[correction])
    advice = guidance_advice(chosen, scale, fitted_elsewhere)
    assert said in advice and bool(said) == bool(advice)
