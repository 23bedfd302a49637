"""Advice on corrections and guidance is said where the two were chosen together, and nowhere else."""

import pytest

from ptq_diffusion.command.check.advice import guidance_advice
from ptq_diffusion.engine.factory import construct
from tests.correction.presets import FILES

MAPS_ARE_AMPLIFIED = "compare correction=rescaled_guided_matched"
NO_DIFFERENCES = "without guidance there are no differences"


@pytest.mark.parametrize(
    ("correction", "scale", "fitted_at", "said"),
    [
        ("matched", 3, None, MAPS_ARE_AMPLIFIED),
        ("rescaled_matched", 7, None, MAPS_ARE_AMPLIFIED),
        ("rescaled_matched", 7, 1.5, ""),
        ("rescaled_matched", 1.5, None, ""),
        ("rescaled_matched", 1, None, ""),
        ("rescaled", 7, None, ""),
        ("ptqd", 7, None, ""),
        ("auto", 7, None, ""),
        ("auto", 1, None, ""),
        ("rescaled_guided_matched", 7, None, ""),
        ("rescaled_guided_matched", 1, None, NO_DIFFERENCES),
        ("rescaled_guided_matched", 7, 1, NO_DIFFERENCES),
        ("rescaled_guided_ptqd", 1, None, NO_DIFFERENCES),
    ],
)
def test_advice(correction, scale, fitted_at, said):
    chosen = construct(FILES[correction])
    advice = guidance_advice(chosen, scale, fitted_at)
    assert said in advice and bool(said) == bool(advice)
