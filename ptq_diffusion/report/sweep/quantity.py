"""The metric that a sweep's table shows: how it is called, which direction is better, how many digits it has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ptq_diffusion.metric import Interval, Metric
from ptq_diffusion.report.sweep.runs import Run

FID = "fid"


@dataclass(frozen=True)
class Quantity:
    """One metric of reports.

    Args:
        name: in reports, such as fid or kid_to_fp.
        higher_is_better: whether more of it is better.
        ranked: whether lines of a cell are sorted by it, the best first.
    """

    name: str = FID
    higher_is_better: bool = False
    ranked: bool = False

    @property
    def title(self) -> str:
        """The name as a reader sees it."""
        words = self.name.removesuffix("_to_fp").replace("_", " ")
        short = words.upper() if words in ("fid", "kid", "psnr", "ssim") else words.replace("sfid", "sFID")
        return f"{short} to float" if self.name.endswith("_to_fp") else short

    def cost(self, value: float) -> float:
        """The value with a sign with which less is better."""
        return -value if self.higher_is_better else value

    def text(self, value: float, sign: str = "") -> str:
        """A value in three decimals; where these say little, as of KID, in three digits."""
        small = self.name != FID and abs(value) < 0.1
        return format(value + 0.0, f"{sign}.3g" if small else f"{sign}.3f")

    def interval(self, gap: Interval) -> str:
        """A difference and its 95 % interval; a zero has no sign of its own."""
        return f"{self.text(gap.difference, '+')} [{self.text(gap.low, '+')}, {self.text(gap.high, '+')}]"


def quantity_of(runs: Sequence[Run], name: str | None) -> Quantity:
    """The metric of this name that complete runs carry; FID, unsorted, where none is named.

    Raises:
        ValueError: no run has a number of it, and the message lists those that runs have; or nothing tells which
            direction of it is better.
    """
    if name is None:
        return Quantity()
    known = carried(runs)
    if name not in known:
        raise ValueError(f"expected --metric to name one that the runs carry, {', '.join(known)}, got {name!r}")
    return Quantity(name, _higher_is_better(runs, name), ranked=True)


def carried(runs: Sequence[Run]) -> list[str]:
    """The metrics that complete runs have numbers of, sorted by name."""
    rows = [row for run in runs if run.report for row in run.report["rows"]]
    return sorted({key for row in rows for key in row if f"{key}_se" in row and row[key] is not None})


def _higher_is_better(runs: Sequence[Run], name: str) -> bool:
    """Whether more of a metric is better, as reports tell, or where all are of earlier versions, the metric itself."""
    told = [names for run in runs if run.report and (names := run.report.get("higher_is_better")) is not None]
    if told:
        return any(name in names for names in told)
    known = {kind.name: kind.higher_is_better for kind in _kinds(Metric) if "name" in vars(kind)}  # type: ignore[type-abstract]
    if name not in known:
        raise ValueError(
            f"expected a metric of which it is known whether more is better, got {name}, which no report tells of and "
            "this version has not; make one of the reports again"
        )
    return known[name]


def _kinds(kind: type[Metric]) -> Iterator[type[Metric]]:
    """The metrics that are derived from one."""
    for part in kind.__subclasses__():
        yield part
        yield from _kinds(part)
