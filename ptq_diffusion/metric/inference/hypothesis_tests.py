"""Hypothesis tests: non-inferiority, and Holm's adjustment for several at once."""

import math
from collections.abc import Sequence

from ptq_diffusion.metric.inference.bootstrap import Interval


def noninferiority(gap: Interval, margin: float) -> float:
    """The p-value of "the difference is `margin` or more", by the normal law of the interval.

    Small where a is certainly not worse than b by the margin, both metrics where less is better and the gap a - b.

    Args:
        gap: a - b with its 95 % interval.
        margin: in the metric's unit, above 0.
    """
    if gap.standard_error == 0:
        return 0.0 if gap.difference < margin else 1.0
    return 0.5 * math.erfc((margin - gap.difference) / gap.standard_error / math.sqrt(2))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false rejection is kept (Holm, Scand. J. Statistics 1979).

    Args:
        p: of every hypothesis.

    Returns:
        In the same order: max over the smaller ones p_(j), j <= i, of min(1, (n - j + 1) p_(j)).
    """
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = worst
    return adjusted
