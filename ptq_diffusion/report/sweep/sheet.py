"""One table of a sweep, of the runs of one protocol, in every form that it is shown in."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.against import with_differences
from ptq_diffusion.report.sweep.baseline import Baseline
from ptq_diffusion.report.sweep.lines import Line, lines_of
from ptq_diffusion.report.sweep.pooling import pooled
from ptq_diffusion.report.sweep.quantity import Quantity
from ptq_diffusion.report.sweep.runs import Run, differing
from ptq_diffusion.report.sweep.selection import protocol_of
from ptq_diffusion.report.sweep.table import WholeWords, failures_apart, latex, level, markdown, shown
from ptq_diffusion.report.sweep.verdict import cells_of, titles_of, verdict_table, verdicts

COMMON = ("sampler._target_", "sampler.steps", "sampler.eta", "calibration.images", "noise.images")
"""Options that are named even where no run differs in them."""
FIRST = ("fid", "fid_se", "fid_to_fp", "psnr_to_fp", "bops_per_image", "bops_saving", "weight_bytes")
"""Numbers that come first in a CSV file; all other metrics follow by name."""


@dataclass(frozen=True)
class Sheet:
    """The runs of one protocol as lines.

    Args:
        runs: which it is of.
        quantity: the metric that is shown.
        factors: dotted keys in which the runs differ.
        lines: a float model, a quantized model, a correction of it each.
    """

    runs: Sequence[Run]
    quantity: Quantity
    factors: Sequence[str]
    lines: Sequence[Line]

    @classmethod
    def of(cls, runs: Sequence[Run], quantity: Quantity, against: Baseline | None) -> "Sheet":
        """The sheet of runs, with the differences to a baseline where there is one; see `with_differences`."""
        factors = differing(runs)
        lines = lines_of(runs, factors, quantity)
        if against is not None:
            lines = with_differences(lines, runs, against)
        return cls(runs, quantity, factors, pooled(lines))

    @property
    def title(self) -> str:
        """The metric's features, the number of images and what they are judged against."""
        run = next((run for run in self.runs if run.report), None)
        if run is None or run.report is None:
            return "no run is complete"
        fields = protocol_of(run)
        features = str(fields["metric"])
        metric = features if self.quantity.name == "fid" else f"{self.quantity.name} beside {features}"
        return f"{metric} of {fields['seeds']} x {fields['images']} images against {fields['against']}"

    @property
    def name(self) -> str:
        """The metric and the first letters of the protocol's hash, for the names of files."""
        report = next((run.report for run in self.runs if run.report), None)
        return "incomplete" if report is None else f"{report['protocol']['metric']}-{report['protocol_id'][:6]}"

    @property
    def caption(self) -> str:
        """Options that all runs share and that a reader needs to know, and which lines are means."""
        run, pools = self.runs[0], sum(bool(line.beside) for line in self.lines)
        shared = [key for key in COMMON if key not in self.factors and key in run.config]
        text = "in all: " + ", ".join(f"{key.removesuffix('._target_')} {level(key, run.level(key))}" for key in shared)
        return f"{text}; {pools} lines are means of runs of other seeds" if pools else text

    def console(self) -> Group:
        """The table and its verdict for the console."""
        brief, why = failures_apart(self.lines)
        table = WholeWords(*shown(brief, self.factors, self.quantity), self.title, self.caption + why)
        return Group(table, verdict_table(titles_of(self.quantity), self._verdict()))

    def markdown(self) -> str:
        """The table and its verdict in Markdown."""
        table = markdown(*shown(self.lines, self.factors, self.quantity))
        return f"{self.title}; {self.caption}.\n\n{table}\n\n{markdown(titles_of(self.quantity), self._verdict())}\n"

    def latex(self) -> str:
        """The table for LaTeX."""
        return latex(*shown(self.lines, self.factors, self.quantity), f"{self.title}; {self.caption}.")

    def _verdict(self) -> list[list[str]]:
        return [cells_of(verdict) for verdict in verdicts(self.lines, self.quantity)]


def csv_text(sheets: Sequence[Sheet]) -> str:
    """All tables as one CSV, with every digit, every metric and the factors by their dotted keys."""
    lines = [line for sheet in sheets for line in sheet.lines]
    factors = list(dict.fromkeys(key for sheet in sheets for key in sheet.factors))
    metrics = sorted({key for line in lines for key in line.values if f"{key}_se" in line.values})
    numbers = list(dict.fromkeys([*FIRST, *(f"{key}{end}" for key in metrics for end in ("", "_se"))]))
    others = list(dict.fromkeys(name for line in lines for name in line.against))
    bounds = [f"{name}{part}" for name in ("gain", *others) for part in ("", "_low", "_high")]
    text = io.StringIO()
    columns = [*factors, "correction", *numbers, *bounds, "seeds", "reason", "run", "protocol"]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for sheet in sheets:
        writer.writerows(_row(line, numbers) | {"protocol": sheet.name} for line in sheet.lines)
    return text.getvalue()


def _row(line: Line, numbers: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = dict(line.levels) | {key: line.values.get(key, "") for key in numbers}
    for name, difference in {"gain": line.gain, **line.against}.items():
        if isinstance(difference, Interval):
            row |= {name: difference.difference, f"{name}_low": difference.low, f"{name}_high": difference.high}
    seeds = " ".join(map(str, line.values.get("seeds", ())))
    run = " ".join((line.run, *line.beside))
    return row | {"correction": line.correction, "seeds": seeds, "reason": line.reason, "run": run}
