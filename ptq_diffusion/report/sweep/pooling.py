"""Pools lines of runs that differ in their seeds alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.lines import Line


def pooled(lines: Sequence[Line]) -> list[Line]:
    """The lines in their order, where those of one correction and one cell from different seeds are one, their mean.

    Each number keeps the meaning that it has in its report: a metric of so many images, averaged over the runs, whose
    standard error is that of a mean of independent ones. FID falls with the number of images, so it is not computed
    anew from all images together. Lines of the same seeds, as of two versions of the code, stay apart.
    """
    groups: dict[object, list[Line]] = {}
    for line in lines:
        key = (tuple(line.levels.items()), line.correction) if line.values else id(line)
        groups.setdefault(key, []).append(line)
    return [line for group in groups.values() for line in (_means(group) if len(group) > 1 else group)]


def _means(group: Sequence[Line]) -> list[Line]:
    seeds = [tuple(line.values["seeds"]) for line in group]
    if len(set(seeds)) < len(seeds):
        return list(group)
    first = group[0]
    against = {name: _other([line.against[name] for line in group]) for name in first.against if _all_have(name, group)}
    beside = tuple(line.run for line in group[1:])
    gain, loss = _mean_of_all([line.gain for line in group]), _mean_of_all([line.loss for line in group])
    values = _values([line.values for line in group])
    return [replace(first, beside=beside, values=values, gain=gain, loss=loss, against=against)]


def _all_have(name: str, group: Sequence[Line]) -> bool:
    return all(name in line.against for line in group)


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of a row's metrics, the standard errors of these, and all seeds."""
    values = dict(rows[0]) | {"seeds": [seed for row in rows for seed in row["seeds"]]}
    for key in [key for key in rows[0] if f"{key}_se" in rows[0]]:
        numbers = [row[key] for row in rows if row.get(key) is not None]
        errors = [row[f"{key}_se"] for row in rows if row.get(f"{key}_se") is not None]
        if len(numbers) == len(errors) == len(rows):
            values |= {key: fmean(numbers), f"{key}_se": math.hypot(*errors) / len(errors)}
        else:
            values |= {key: None, f"{key}_se": None}
    return values


def _mean_of_all(gaps: Sequence[Interval | None]) -> Interval | None:
    """The mean where every run has the difference."""
    known = [gap for gap in gaps if gap is not None]
    return _mean(known) if len(known) == len(gaps) else None


def _mean(gaps: Sequence[Interval]) -> Interval:
    """The mean of independent differences."""
    differences = [gap.difference for gap in gaps]
    error = math.hypot(*(gap.standard_error for gap in gaps)) / len(gaps)
    return Interval(fmean(differences), error, stdev(differences))


def _other(cells: Sequence[Interval | str]) -> Interval | str:
    gaps = [cell for cell in cells if isinstance(cell, Interval)]
    return _mean(gaps) if len(gaps) == len(cells) else next(cell for cell in cells if isinstance(cell, str))
