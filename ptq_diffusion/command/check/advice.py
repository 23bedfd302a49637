"""Advice before a run, on corrections and guidance that were chosen together; nothing is refused by it."""

from typing import Any

from ptq_diffusion.correction import Auto, Correction, Reads

AMPLIFYING = 3
"""The guidance scale from which output maps that are fitted at it lost on cifar10_ldm (experiments/guidance)."""


def guidance_advice(correction: Auto | Correction[Any], scale: float, fitted_at: float | None) -> str:
    """One line of advice on a correction at a guidance scale, or an empty text.

    Args:
        correction: as chosen.
        scale: the guidance scale that it serves, 1 for none.
        fitted_at: the scale that it is fitted at; None for the same.
    """
    if 1 in (scale, fitted_at) and isinstance(correction, Correction) and correction.differences is not None:
        option = "condition.guidance.scale" if scale == 1 else "noise.guidance"
        return (
            "correction: without guidance there are no differences between its rows to quantize, so that the "
            f"correction is what it is without `differences`; {option} is 1"
        )
    if scale >= AMPLIFYING and fitted_at is None and _fits_maps(correction):
        return (
            f"noise: fitted at guidance {scale:g}, which amplifies the noise that output maps are fitted to; compare "
            "correction=rescaled_guided_matched, or noise.guidance=1.5, at which fits did better on two of the three "
            "networks that were measured (experiments/guidance)"
        )
    return ""


def _fits_maps(correction: Auto | Correction[Any]) -> bool:
    """Whether a correction, or a candidate of a choice, fits maps of the output along a path; layers alone are none.

    None counts beside one with differences between the rows of guidance, which leave little of the noise that it adds.
    """
    corrections = correction.candidates.values() if isinstance(correction, Auto) else [correction]
    maps = [one for one in corrections if one.reads is not Reads.MOMENTS and one.maps_output]
    return bool(maps) and all(one.differences is None for one in maps)
