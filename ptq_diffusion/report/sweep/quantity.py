"""The metric that a sweep's table shows: how it is called, which direction is better, how many digits it has."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric import Interval
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
        ValueError: no run has a number of it; the message lists those that runs have.
    """
    if name is None:
        return Quantity()
    known = carried(runs)
    if name not in known:
        raise ValueError(f"expected --metric to name one that the runs carry, {', '.join(known)}, got {name!r}")
    return Quantity(name, any(_higher_is_better(run, name) for run in runs), ranked=True)


def carried(runs: Sequence[Run]) -> list[str]:
    """The metrics that complete runs have numbers of, sorted by name."""
    rows = [row for run in runs if run.report for row in run.report["rows"]]
    return sorted({key for row in rows for key in row if f"{key}_se" in row and row[key] is not None})


def _higher_is_better(run: Run, name: str) -> bool:
    """Whether the class that a run's configuration gives this metric says so."""
    targets = [level for key, level in run.config.items() if key.startswith("metric.") and key.endswith("._target_")]
    metrics = [construct(OmegaConf.create({"_target_": target})) for target in targets]
    return any(metric.name == name and metric.higher_is_better for metric in metrics)
