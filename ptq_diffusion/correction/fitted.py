"""A fitted correction: for every step of one table a repair of the output and a noise scale. Saved as a folder."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq_diffusion.correction.repair import Affine, Filter, Repair, Spectral
from ptq_diffusion.sampler.step import Step

KINDS: dict[str, type[Repair]] = {kind.kind: kind for kind in (Affine, Filter, Spectral)}
CONFIG, COEFFICIENTS = "correction.json", "correction.safetensors"


@dataclass(frozen=True)
class StepReport:
    """What was found at one step.

    Args:
        t: the time.
        k: the correlation coefficient: the one in use, or the noise's own where the correction has no such term.
        bias: the root mean square over channels of the bias, likewise.
        variance: v, the residual's variance.
        sigma: the noise scale of the step's table.
        sigma_used: sigma', what is left of it to add.
        r2: 1 - E|residual|^2 / E|D|^2, the share of the noise that the correction explains.
        budget: the share of sigma^2 that the residual takes, above 1 where sigma^2 cannot absorb it; None where the
            sampler adds no noise.
        snr_q: signal-to-noise ratio of the quantized output.
        snr_f: of the forward process.
    """

    t: float
    k: float
    bias: float
    variance: float
    sigma: float
    sigma_used: float
    r2: float
    budget: float | None
    snr_q: float
    snr_f: float


@dataclass(frozen=True)
class StepCorrection:
    """What is done at one step.

    Args:
        repairs: applied to the output one after the other; none leaves it as it is.
        sigma: sigma', the standard deviation of the noise to add.
        report: what was found.
    """

    repairs: tuple[Repair, ...]
    sigma: float
    report: StepReport

    def output(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:
        """m~, the estimate of the float output from the quantized one, (B, C, H, W); see `Repair.output`."""
        for repair in self.repairs:
            q = repair.output(q, x_t, features)
        return q


@dataclass(frozen=True)
class FittedCorrection:
    """A correction of one table.

    Args:
        steps: the table to sample with.
        found: what is done at each of its steps.
    """

    steps: Sequence[Step]
    found: Sequence[StepCorrection]

    def output(self, q: Tensor, x_t: Tensor, features: Tensor, step: Step) -> Tensor:
        """m~ at a step, (B, C, H, W)."""
        return self.found[step.i].output(q, x_t, features)

    def sigma(self, step: Step) -> float:
        """sigma' at a step."""
        return self.found[step.i].sigma

    @property
    def needs_features(self) -> bool:
        """Whether a step reads the features; a correction that reads none is a function of q and x_t."""
        return any(repair.needs_features for found in self.found for repair in found.repairs)

    def rows(self) -> dict[float, Step]:
        """The step of every time, as the tensor of a pipeline's times holds it.

        Raises:
            ValueError: two steps have the same time.
        """
        times = torch.tensor([step.t for step in self.steps]).tolist()
        if len(set(times)) < len(times):
            raise ValueError(f"expected a table whose times differ, got {times}; fit another")
        return dict(zip(times, self.steps, strict=True))

    def without_repairs(self) -> "FittedCorrection":
        """The table and sigma' alone, for outputs that are repaired already, such as a `CorrectedNetwork`'s."""
        return FittedCorrection(self.steps, [dataclasses.replace(found, repairs=()) for found in self.found])

    def report(self) -> Sequence[StepReport]:
        """What was found, one entry for each step."""
        return [found.report for found in self.found]

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiplications of all steps for one image of shape (C, H, W)."""
        return sum(repair.macs(shape) for found in self.found for repair in found.repairs)

    @property
    def size(self) -> int:
        """Bytes of all coefficients as they are saved."""
        tensors = (t for found in self.found for repair in found.repairs for t in repair.tensors().values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def save(self, folder: Path) -> None:
        """Write `correction.json` and `correction.safetensors` into an existing folder."""
        tensors = {
            f"{i}/{place}/{repair.kind}/{name}": tensor
            for i, found in enumerate(self.found)
            for place, repair in enumerate(found.repairs)
            for name, tensor in repair.tensors().items()
        }
        tensors["sigma"] = torch.tensor([found.sigma for found in self.found], dtype=torch.float64)
        tensors["report"] = torch.tensor([_numbers(found.report) for found in self.found], dtype=torch.float64)
        save_file(tensors, folder / COEFFICIENTS)
        steps = [dataclasses.asdict(step) for step in self.steps]
        (folder / CONFIG).write_text(json.dumps({"steps": steps}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "FittedCorrection":
        """Read what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: the file names a kind of repair that does not exist.
        """
        for name in (CONFIG, COEFFICIENTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"expected {name} in {folder}, a folder that FittedCorrection.save wrote")
        tensors = load_file(folder / COEFFICIENTS)
        steps = [Step(**row) for row in json.loads((folder / CONFIG).read_text())["steps"]]
        rows = zip(tensors["sigma"].tolist(), tensors["report"].tolist(), strict=True)
        found = [StepCorrection(_repairs(tensors, i), sigma, _report(row)) for i, (sigma, row) in enumerate(rows)]
        return cls(steps, found)


def _repairs(tensors: dict[str, Tensor], i: int) -> tuple[Repair, ...]:
    parts: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        step, *rest = name.split("/")
        if step == str(i):
            place, kind, field = rest
            parts.setdefault((int(place), kind), {})[field] = tensor
    unknown = {kind for _, kind in parts} - set(KINDS)
    if unknown:
        raise ValueError(f"expected repairs of the kinds {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    return tuple(KINDS[kind](**fields) for (_, kind), fields in sorted(parts.items(), key=lambda part: part[0]))


def _numbers(report: StepReport) -> list[float]:
    """The report's fields in order; NaN stands for no budget."""
    return [float("nan") if value is None else value for value in dataclasses.astuple(report)]


def _report(numbers: Sequence[float]) -> StepReport:
    names = [field.name for field in dataclasses.fields(StepReport)]
    report = StepReport(**dict(zip(names, numbers, strict=True)))
    return dataclasses.replace(report, budget=None) if math.isnan(numbers[names.index("budget")]) else report
