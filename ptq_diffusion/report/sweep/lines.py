"""A sweep as lines: one for each float model, each quantized model, and each correction of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.quantity import Quantity
from ptq_diffusion.report.sweep.runs import ABSENT, BITS, Run, depth
from ptq_diffusion.stage.drawing.variants import VARIANTS

NOT_RUN = "not run"
FULL_PRECISION = "full precision"
NONE = "none"
STAGES: tuple[type[Stage], ...] = tuple(VARIANTS.values())


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Args:
        levels: level by factor, only of the factors that it depends on.
        correction: `FULL_PRECISION`, `NONE` or a correction's name.
        run: the name of the run that it was read from, the first of those that share it; empty if there is none.
        values: the variant's row of the report, or nothing.
        gain: corrected - quantized of the table's metric, of a correction's line.
        loss: quantized - full precision of it, of a correction's line; None where the float model has no such metric.
        reason: why there are no values.
        against: differences to a `Baseline` by metric, where they were asked for.
        beside: names of further runs, of other seeds, of which the values are the mean with those of `run`.
    """

    levels: Mapping[str, str]
    correction: str
    run: str
    values: Mapping[str, Any]
    gain: Interval | None = None
    loss: Interval | None = None
    reason: str = ""
    against: Mapping[str, Interval | str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


def lines_of(runs: Sequence[Run], factors: Sequence[str], quantity: Quantity) -> list[Line]:
    """Lines in the order of the factors' levels: a float model, its quantized models, the corrections of each.

    Samples that runs share are one line. The grid is taken to be the full product of the levels and corrections of the
    runs that did not fail. A cell of it without a run is a line that says so; where these would outnumber the runs,
    several sweeps lie together, and one line counts them.
    """
    measured: dict[tuple[object, ...], Line] = {}
    for run in runs:
        for rank, variant in enumerate(run.report["rows"] if run.report else ()):
            line = _line(run, rank, variant, factors, quantity)
            measured.setdefault((rank, run.signature(STAGES[rank]), tuple(line.levels.items()), line.correction), line)
    unfinished = [Line(_levels(run, factors), run.correction, run.name, {}, reason=run.reason) for run in runs]
    absent = [Line(levels, name, "", {}, reason=NOT_RUN) for levels, name in _not_run(runs, factors)]
    if len(absent) > len(runs):
        absent = [Line({}, "", "", {}, reason=f"{len(absent)} more cells of the product of all levels: {NOT_RUN}")]
    # Without a correction the corrected images are the quantized ones, which have a line.
    unique = [line for (rank, *_), line in measured.items() if (rank, line.correction) != (2, NONE)]
    return sorted([*unique, *(line for line in unfinished if line.reason), *absent], key=_order(factors, quantity))


def _line(run: Run, rank: int, variant: Mapping[str, Any], factors: Sequence[str], quantity: Quantity) -> Line:
    name = (FULL_PRECISION, NONE, run.correction)[rank]
    levels = {key: run.level(key) for key in factors if depth(key) <= rank}
    if rank < 2:
        return Line(levels, name, run.name, variant)
    gain, loss = _change(run, "quantized", "corrected", quantity.name), _loss(run, quantity.name)
    return Line(levels, name, run.name, variant, gain, loss)


def _loss(run: Run, metric: str) -> Interval | None:
    """Quantized - full precision; from the rows of a metric to float, which the report has no such pair of."""
    paired = _change(run, "full_precision", "quantized", metric)
    if paired is not None or not run.report:
        return paired
    full, quantized = run.report["rows"][:2]
    if full.get(metric) is None or quantized.get(f"{metric}_se") is None:
        return None
    return Interval(quantized[metric] - full[metric], quantized[f"{metric}_se"], None)


def _change(run: Run, before: str, after: str, metric: str) -> Interval | None:
    """After - before, of which the report holds the negative; None where the run lacks the metric."""
    pairs = run.report["paired"] if run.report else ()
    pair = next((p for p in pairs if (p["a"], p["b"], p["metric"]) == (before, after, metric)), None)
    return pair and Interval(pair["difference"], pair["standard_error"], pair["seed_spread"]).reversed


def _levels(run: Run, factors: Sequence[str]) -> dict[str, str]:
    return {key: run.level(key) for key in factors}


def _not_run(runs: Sequence[Run], factors: Sequence[str]) -> list[tuple[dict[str, str], str]]:
    """Cells of the product that no run has. Options that exclude each other, as DDPM and eta do, are not crossed."""
    cells = {(tuple(_levels(run, factors).values()), run.correction) for run in runs}
    alive = [run for run in runs if not run.reason.startswith("failed")]
    observed = [sorted({run.level(key) for run in alive}) for key in factors]
    kinds = {_kind(_levels(run, factors)) for run in alive}
    names = sorted({run.correction for run in alive} - {NONE})
    grid = [(dict(zip(factors, levels, strict=True)), name) for levels in product(*observed) for name in names]
    return [
        (levels, name)
        for levels, name in grid
        if _kind(levels) in kinds and (tuple(levels.values()), name) not in cells
    ]


def _kind(levels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The classes that are chosen and the options that they lack."""
    return tuple((key, level) for key, level in levels.items() if key.endswith("_target_") or level == ABSENT)


def _order(factors: Sequence[str], quantity: Quantity) -> Callable[[Line], list[Any]]:
    """Level by level of what is shared, the shared line first; more bits before fewer; the best, if ranked."""

    def key(line: Line) -> list[Any]:
        rank = {FULL_PRECISION: 0, NONE: 1}.get(line.correction, 2)
        places: list[Any] = []
        for level in range(3):
            places.append(rank >= level)
            places += [_natural(factor, line.levels.get(factor, "")) for factor in factors if depth(factor) == level]
        value = line.values.get(quantity.name) if quantity.ranked else None
        return [*places, math.inf if value is None else quantity.cost(value), line.correction, line.run]

    return key


def _natural(factor: str, level: str) -> list[tuple[float, str]]:
    sign = -1 if factor == BITS else 1
    return [(sign * float(part), "") if _is_number(part) else (0.0, part) for part in level.split("/")]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
