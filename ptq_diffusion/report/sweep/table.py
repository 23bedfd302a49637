"""The lines of a sweep as Markdown, CSV and a table for the console."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.lines import Line
from ptq_diffusion.report.sweep.runs import BITS

TITLES = {BITS: BITS, "quantizer.weight.per_channel": "weights per channel"}
FAILED = "failed"
SEVERAL = ("images", "seed", "steps")
"""Last parts of keys that several things have, such as a run and a calibration, and which name none of them."""
MEASURED = ("fid", "fid_se", "fid_to_fp", "psnr_to_fp", "bops_per_image", "bops_saving", "weight_bytes")


def titles(factors: Sequence[str]) -> list[str]:
    """The shortest ending of each dotted key that no other has, and that does not stand for several things."""

    def shortest(key: str) -> str:
        parts = key.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        clashes = [other for other in factors if other != key]
        taken = {end for end in endings if any(f".{other}".endswith(f".{end}") for other in clashes)}
        return next((end for end in endings if end not in taken.union(SEVERAL)), key)

    return [TITLES.get(key) or shortest(key).replace("_target_", "class") for key in factors]


def shown(lines: Sequence[Line], factors: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The columns and the cells that a reader sees."""
    others = list(dict.fromkeys(name for line in lines for name in line.against))
    fixed = ["correction", "FID ± se", "FID - quantized, 95 %", *others, "to float", "PSNR", "run"]
    return [*titles(factors), *fixed], [_cells(line, factors, others) for line in lines]


def failures_apart(lines: Sequence[Line]) -> tuple[list[Line], str]:
    """Lines that say only that they failed, and below them why, for which no cell of a console has room."""
    failed = [line.reason.startswith(f"{FAILED}: ") for line in lines]
    pairs = list(zip(lines, failed, strict=True))
    brief = [replace(line, reason=FAILED) if has else line for line, has in pairs]
    reasons = [f"\n{FAILED}: {line.run}{line.reason.removeprefix(FAILED)}" for line, has in pairs if has]
    return brief, "".join(reasons)


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; what would end a cell or a line is escaped."""
    rows = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in row)} |" for row in rows)


def console(columns: Sequence[str], cells: Sequence[Sequence[str]], title: str, caption: str) -> Table:
    """The table for the console, without the runs' names, which the files hold; whole on 80 columns."""
    # Names and messages are the user's own: brackets in them are no markup.
    table = Table(title=escape(title), caption=escape(caption), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns[:-1]:
        table.add_column(escape(column), overflow="fold")
    name = columns.index("correction")
    for row in cells:
        # A name of several words may break between them; the files hold it as it is written.
        table.add_row(*map(escape, (*row[:name], row[name].replace("_", " "), *row[name + 1 : -1])))
    return table


def csv_text(lines: Sequence[Line], factors: Sequence[str]) -> str:
    """The table as CSV, with every digit and the factors by their dotted keys."""
    others = list(dict.fromkeys(name for line in lines for name in line.against))
    bounds = [f"{name}{part}" for name in ("gain", *others) for part in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [*factors, "correction", *MEASURED, *bounds, "reason", "run"], restval="", lineterminator="\n"
    )
    writer.writeheader()
    for line in lines:
        row: dict[str, Any] = dict(line.levels) | {key: line.values.get(key, "") for key in MEASURED}
        for name, difference in {"gain": line.gain, **line.against}.items():
            if isinstance(difference, Interval):
                row |= {name: difference.difference, f"{name}_low": difference.low, f"{name}_high": difference.high}
        writer.writerow(row | {"correction": line.correction, "reason": line.reason, "run": line.run})
    return text.getvalue()


def _cells(line: Line, factors: Sequence[str], others: Sequence[str]) -> list[str]:
    levels = [level(key, line.levels.get(key, "")) for key in factors]
    if not line.values:
        status, _, reason = line.reason.partition(": ")
        return [*levels, line.correction, status, reason, *[""] * len(others), "", "", line.run]
    gain = "" if line.gain is None else interval(line.gain)
    against = [_other(line.against.get(name, "")) for name in others]
    fid = f"{line.values['fid']:.3f} ± {line.values['fid_se']:.3f}"
    return [*levels, line.correction, fid, gain, *against, *_fidelity(line.values), line.run]


def _fidelity(values: Mapping[str, Any]) -> tuple[str, str]:
    ratio = values.get("psnr_to_fp", "")
    shown = "same" if ratio is None else f"{ratio:.2f}" if ratio else ""
    return f"{values['fid_to_fp']:.3f}", shown


def interval(gap: Interval) -> str:
    """A difference and its 95 % interval; a zero has no sign of its own."""
    return f"{gap.difference + 0.0:+.3f} [{gap.low + 0.0:+.3f}, {gap.high + 0.0:+.3f}]"


def _other(gap: Interval | str) -> str:
    return interval(gap) if isinstance(gap, Interval) else gap


def level(key: str, text: str) -> str:
    """A level as a reader expects it: yes and no, a class without its modules."""
    return text.rpartition(".")[2] if key.endswith("_target_") else {"true": "yes", "false": "no"}.get(text, text)
