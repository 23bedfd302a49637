"""The lines of a sweep as cells, and these as Markdown, LaTeX and a table for the console."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.lines import Line
from ptq_diffusion.report.sweep.quantity import Quantity
from ptq_diffusion.report.sweep.runs import BITS

TITLES = {BITS: BITS, "quantizer.weight.granularity._target_": "weights"}
FAILED = "failed"
SEVERAL = ("images", "seed", "steps", "weight", "activation")
"""Last parts of keys that several things have, such as a run and a calibration, and which name none of them."""
WORD = re.compile(r"\S+(?: ±)?")
EDGES, BETWEEN = 2, 2
"""Letters at the edges of a console's table, and beside each column."""
LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def titles(factors: Sequence[str]) -> list[str]:
    """The shortest ending of each dotted key that no other has, and that does not stand for several things."""

    def shortest(key: str) -> str:
        parts = key.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        clashes = [other for other in factors if other != key]
        taken = {end for end in endings if any(f".{other}".endswith(f".{end}") for other in clashes)}
        return next((end for end in endings if end not in taken.union(SEVERAL)), key)

    return [TITLES.get(key) or shortest(key).replace("_target_", "class") for key in factors]


def shown(lines: Sequence[Line], factors: Sequence[str], quantity: Quantity) -> tuple[list[str], list[list[str]]]:
    """The columns and the cells that a reader sees."""
    others = list(dict.fromkeys(name for line in lines for name in line.against))
    metric = quantity.title
    fixed = ["correction", f"{metric} ± se", f"{metric} - quantized, 95 %", *others, "to float", "PSNR", "run"]
    return [*titles(factors), *fixed], [_cells(line, factors, others, quantity) for line in lines]


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


def latex(columns: Sequence[str], cells: Sequence[Sequence[str]], caption: str) -> str:
    """The table for LaTeX with the package booktabs, the runs' names left out; letters with a meaning are escaped."""
    head, *body = (" & ".join(map(_escaped, row[:-1])) + r" \\" for row in (columns, *cells))
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_escaped(caption)}}}",
            rf"  \begin{{tabular}}{{{'l' * (len(columns) - 1)}}}",
            r"    \toprule",
            f"    {head}",
            r"    \midrule",
            *(f"    {row}" for row in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


@dataclass(frozen=True)
class WholeWords:
    """A table for the console, without the runs' names, that breaks no word on any width of 40 columns or more.

    Where the words of all columns do not stand side by side, columns follow in tables of their own, each with the
    correction and the factors in front.

    Args:
        columns: the heads; the last is the run's name.
        cells: the rows.
        title: above the table.
        caption: below it.
    """

    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    title: str
    caption: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = list(self._parts(options.max_width))
        for place, part in enumerate(parts):
            first, last = place == 0, place == len(parts) - 1
            table = Table(
                title=Text(self.title, style="table.title") if first else None,
                caption=Text(self.caption, style="table.caption") if last else None,
                box=SIMPLE_HEAD,
                padding=(0, 1, 0, 0),
                pad_edge=False,
            )
            for column, width in zip(part, self._widths(part, options.max_width), strict=True):
                table.add_column(Text(self.columns[column]), width=width)
            for row in self._rows():
                table.add_row(*(Text(row[column]) for column in part))
            yield table

    def _rows(self) -> Iterator[list[str]]:
        """The rows, whose names of several words may break between them; files hold them as they are written."""
        name = self.columns.index("correction")
        for row in self.cells:
            yield [*row[:name], row[name].replace("_", " "), *row[name + 1 : -1]]

    def _texts(self, column: int) -> list[str]:
        return [self.columns[column], *(row[column] for row in self._rows())]

    def _width(self, column: int) -> int:
        """The letters of the longest word of a column; a plus-minus stays beside its number."""
        return max((len(word) for text in self._texts(column) for word in WORD.findall(text)), default=1)

    def _widths(self, part: Sequence[int], width: int) -> list[int]:
        """The widths of a table's columns, their longest words at least; the rest goes where most is lacking."""
        widths = [self._width(column) for column in part]
        whole = [max(map(len, self._texts(column))) for column in part]
        for _ in range(width - EDGES - sum(widths) - BETWEEN * len(part)):
            lacking = [full - one for full, one in zip(whole, widths, strict=True)]
            widths[lacking.index(max(lacking))] += max(lacking) > 0
        return widths

    def _parts(self, width: int) -> Iterator[list[int]]:
        """The columns of each table."""
        front = list(range(self.columns.index("correction") + 1))
        start = used = EDGES + sum(self._width(column) + BETWEEN for column in front)
        part = list(front)
        for column in range(len(front), len(self.columns) - 1):
            need = self._width(column) + BETWEEN
            if used + need > width and len(part) > len(front):
                yield part
                part, used = list(front), start
            part, used = [*part, column], used + need
        yield part


def _cells(line: Line, factors: Sequence[str], others: Sequence[str], quantity: Quantity) -> list[str]:
    levels = [level(key, line.levels.get(key, "")) for key in factors]
    run = f"{line.run} and {len(line.beside)} more" if line.beside else line.run
    if not line.values:
        status, _, reason = line.reason.partition(": ")
        return [*levels, line.correction, status, reason, *[""] * len(others), "", "", run]
    value, error = (line.values.get(key) for key in (quantity.name, f"{quantity.name}_se"))
    measured = "" if value is None else f"{quantity.text(value)} ± {quantity.text(error or 0.0)}"
    gain = "" if line.gain is None else quantity.interval(line.gain)
    against = [_other(line.against.get(name, "")) for name in others]
    return [*levels, line.correction, measured, gain, *against, *_fidelity(line.values), run]


def _fidelity(values: Mapping[str, Any]) -> tuple[str, str]:
    ratio = values.get("psnr_to_fp", "")
    shown = "same" if ratio is None else f"{ratio:.2f}" if ratio else ""
    return f"{values['fid_to_fp']:.3f}", shown


def _other(gap: Interval | str) -> str:
    return Quantity().interval(gap) if isinstance(gap, Interval) else gap


def _escaped(text: str) -> str:
    return re.sub(r"[\\±~^&%$#_{}]", lambda match: LATEX[match.group()], text)


def level(key: str, text: str) -> str:
    """A level as a reader expects it: yes and no, a class without its modules."""
    return text.rpartition(".")[2] if key.endswith("_target_") else {"true": "yes", "false": "no"}.get(text, text)
