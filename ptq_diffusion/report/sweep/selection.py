"""Selects runs by their options, and sets apart those whose numbers cannot be compared."""

import json
from collections.abc import Callable, Sequence

from ptq_diffusion.metric.protocol import protocol_id
from ptq_diffusion.report.sweep.runs import BITS, Run

SEEDS = "seeds"
JUDGED_BY = ("feature.", "reference.", "judging.", "images")
"""Options that decide the protocol, by which a run without a report joins those that have one."""


def where(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that meet all conditions.

    Args:
        runs: to choose from.
        conditions: `KEY=VALUE` or `KEY=VALUE,VALUE`, any of which will do; a key is dotted, an ending of one such as
            eta, a group such as correction, or bits, such as bits=4/8.

    Raises:
        ValueError: a condition has no =, its key is none or several of the runs' options, or no run meets all.
    """
    options = options_of(conditions, "--where", runs)
    chosen = [run for run in runs if meets(run, options)]
    if not chosen:
        raise ValueError(f"expected runs with {' and '.join(conditions)}, found none among {len(runs)}")
    return chosen


def options_of(conditions: Sequence[str], word: str, runs: Sequence[Run]) -> list[tuple[str, set[str]]]:
    """The option and the levels of each condition behind a word of the command line; see `where`.

    Raises:
        ValueError: a condition has no =, or its key is none or several of the runs' options.
    """
    options = []
    for condition in conditions:
        key, equal, values = condition.partition("=")
        if not equal:
            raise ValueError(f"expected {word} KEY=VALUE, got {condition!r}")
        options.append((_option_of(key, word, runs), {_number(value) for value in values.split(",")}))
    return options


def meets(run: Run, options: Sequence[tuple[str, set[str]]]) -> bool:
    """Whether a run has one of the levels of each option."""
    return all(_number(run.level(option)) in levels for option, levels in options)


def by_protocol(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each protocol, in the order of their first; runs that differ in their seeds alone stay together.

    Seeds of which some are shared are no further samples, so such runs are set apart like other protocols.
    """
    tables: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.report is None):
        table = next((table for table in tables if _belongs(run, table)), None)
        if table is None:
            tables.append([run])
        else:
            table.append(run)
    place = {run.name: i for i, run in enumerate(runs)}
    return [sorted(table, key=lambda run: place[run.name]) for table in tables]


def seeds_of(run: Run) -> tuple[int, ...]:
    """The seeds that a run was configured with."""
    return tuple(json.loads(run.level(SEEDS)))


def protocol_of(run: Run) -> dict[str, object]:
    """The protocol of a complete run, but for its seeds, of which it says how many there are.

    An early report says only in its rows how many images it has.
    """
    assert run.report is not None
    row = run.report["rows"][0]
    return run.report["protocol"] | {"images": row["images"], SEEDS: len(row["seeds"])}


def _belongs(run: Run, table: Sequence[Run]) -> bool:
    """Whether a run's numbers may stand in a table."""
    judged: Callable[[Run], object] = _judged_by
    if run.report is not None and table[0].report is not None:
        judged = _identity
    if judged(run) != judged(table[0]):
        return False
    seeds = seeds_of(run)
    return all(seeds == other or not set(seeds) & set(other) for other in map(seeds_of, table))


def _identity(run: Run) -> object:
    return protocol_id(protocol_of(run))


def _judged_by(run: Run) -> object:
    options = {key: value for key, value in run.config.items() if key.startswith(JUDGED_BY)}
    return options, len(seeds_of(run))


def _option_of(key: str, word: str, runs: Sequence[Run]) -> str:
    """The option that a key behind a word of the command line, such as --where, stands for.

    Raises:
        ValueError: none or several of the runs' options.
    """
    options = sorted({option for run in runs for option in run.config})
    if key in ("bits", BITS):
        return BITS
    if f"labels.{key}" in options:
        return f"labels.{key}"
    endings = [option for option in options if option == key or option.endswith(f".{key}")]
    exact = [option for option in endings if option in (key, f"sampler.{key}")] or endings
    if len(exact) != 1:
        found = ", ".join(exact[:6]) or "none"
        raise ValueError(f"expected {word} with one option of these runs, got {key!r}, which stands for {found}")
    return exact[0]


def _number(level: str) -> str:
    """A level such that 0, 0.0 and 0e0 are one."""
    try:
        return repr(float(level))
    except ValueError:
        return level
