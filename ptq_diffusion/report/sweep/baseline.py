"""Baselines that the lines of a sweep are compared with: a correction, or a level of another option."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ptq_diffusion.report.sweep.lines import FULL_PRECISION, NONE, Line
from ptq_diffusion.report.sweep.runs import BITS, Run, depth
from ptq_diffusion.report.sweep.selection import meets, options_of

BEST = "best"
"""The word for the correction of the lowest FID in each cell, chosen by the numbers that it is judged by."""


class Baseline(ABC):
    """A line of each cell that the others of it are compared with.

    Args:
        name: what heads of columns call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def cell(self, line: Line) -> object | None:
        """The cell of a measured line, equal for lines that are compared; None for a line that stands alone."""

    @abstractmethod
    def variants(self, cell: Sequence[Line]) -> list[str]:
        """The lines of a cell that may be its baseline, by `variant_of`, or `NONE`, its quantized samples.

        A cell has a baseline where there is one.
        """


class OneCorrection(Baseline):
    """The correction of a name among those of one quantized network: also `NONE`, or `BEST` of each cell."""

    def cell(self, line: Line) -> object | None:
        return tuple(line.levels.items()) if line.gain else None

    def variants(self, cell: Sequence[Line]) -> list[str]:
        if self.name == NONE:
            return [NONE]
        if self.name == BEST:
            return [variant_of(min(cell, key=lambda line: float(line.values["fid"])))]
        return [variant_of(line) for line in cell if line.correction == self.name][:1]


class OneLevel(Baseline):
    """Runs of one level of an option, such as of one bitwidth policy, for all that differ in its group alone.

    Quantized samples are compared with quantized ones, and each correction with itself.

    Args:
        conditions: `KEY=VALUE` that its runs meet, all of one group, such as bitwidth=budget and saving=36; see
            `selection.where`.
        runs: of which some meet them.

    Raises:
        ValueError: an option is unknown, options are of several groups, float samples or nothing but the correction
            depend on it, or no run meets the conditions.
    """

    def __init__(self, conditions: Sequence[str], runs: Sequence[Run]) -> None:
        super().__init__(" ".join(conditions))
        options = options_of(conditions, "--against", runs)
        groups = {_group(option) for option, _ in options}
        if len(groups) > 1:
            raise ValueError(
                f"expected --against with options of one group, got those of {' and '.join(sorted(groups))}; set the "
                "others with --where"
            )
        (self._group,) = groups
        if depth(f"{self._group}.") != 1:
            raise ValueError(
                f"expected --against with an option of the quantized network, such as bitwidth=budget, got "
                f"{self.name!r}, of {self._group}; name a correction without its group, such as --against ptqd, and "
                "choose other options with --where"
            )
        self._names = {run.name for run in runs if run.report and meets(run, options)}
        if not self._names:
            raise ValueError(f"expected a finished run with {' and '.join(conditions)}, found none among {len(runs)}")

    def cell(self, line: Line) -> object | None:
        if line.correction == FULL_PRECISION:
            return None
        others = [(key, level) for key, level in line.levels.items() if _group(key) != self._group]
        return (*others, line.correction)

    def variants(self, cell: Sequence[Line]) -> list[str]:
        return [variant_of(line) for line in cell if line.run in self._names]


def baseline_of(words: Sequence[str], runs: Sequence[Run]) -> Baseline:
    """The baseline of the words behind `--against`: one name of a correction, or `KEY=VALUE` once or several times.

    Raises:
        ValueError: no complete run has such a correction, or see `OneLevel`.
    """
    if all("=" in word for word in words):
        return OneLevel(words, runs)
    names = sorted({run.correction for run in runs if run.report})
    if len(words) > 1:
        raise ValueError(f"expected --against once with a correction, got {', '.join(words)}")
    if words[0] not in (BEST, NONE, *names):
        raise ValueError(
            f"expected a correction among {', '.join(sorted({*names, NONE}))}, best, or an option KEY=VALUE, got "
            f"{words[0]!r}"
        )
    return OneCorrection(words[0])


def variant_of(line: Line) -> str:
    """The name by which a line's samples are told from others of its cell."""
    return f"{line.run} {line.correction}"


def _group(option: str) -> str:
    """The group of an option: bitwidth of bitwidth.saving, of labels.bitwidth and of the bits."""
    return "bitwidth" if option == BITS else option.removeprefix("labels.").partition(".")[0]
