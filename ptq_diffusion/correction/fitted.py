"""A fitted correction: for every step of one table a repair of the output and a noise scale. Saved as a folder."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq_diffusion.correction.noise.residual import Residual, multistep_errors
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.repair.filter import Filter, FilterInt8
from ptq_diffusion.correction.repair.repair import Repair, repaired_output
from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.network import Rescaling
from ptq_diffusion.network.rescaling import rescaling_tensors, rescalings_of_tensors
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

KINDS: dict[str, type[Repair]] = {kind.kind: kind for kind in (Affine, Filter, FilterInt8, Spectral)}
RESCALING = "rescaling"
CONFIG, COEFFICIENTS = "correction.json", "correction.safetensors"
FILES = (CONFIG, COEFFICIENTS)
"""The files of a folder."""
FORMAT = 2
"""The version of both files; 1 had no version and held the report's fields by position."""
REPORT, RESIDUAL = ([field.name for field in dataclasses.fields(kind)] for kind in (StepReport, Residual))


@dataclass(frozen=True)
class StepCorrection:
    """A correction of one step.

    Args:
        repairs: applied to the output one after the other; none leaves it as it is.
        sigma: sigma', the standard deviation of the noise to add; of a learned variance that of its lower end.
        report: numbers about the noise and the repairs.
        estimates: ask the network a second time here for the bias of its output, see
            `CorrectedDenoiser`.
        rescalings: the scales, biases and grids that layers of the network compute with here, by their names; other
            layers are as they are.
        residual: the noise that sigma' follows from; None where sigma' belongs to this table alone.
    """

    repairs: tuple[Repair, ...]
    sigma: float
    report: StepReport
    estimates: bool = False
    rescalings: Mapping[str, Rescaling] = dataclasses.field(default_factory=dict)
    residual: Residual | None = None

    @property
    def pairs_rows(self) -> bool:
        """Whether layers quantize differences between the two rows of guidance here, which are asked at once then."""
        return any(rescaling.has_difference for rescaling in self.rescalings.values())

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:
        """m~, the estimate of the float output from the quantized one, (B, C, H, W); see `Repair.output`."""
        return repaired_output(self.repairs, q, x_t, features)

    def spread(self, step: Step, variance: Tensor | None) -> float | Tensor:
        """sigma'; of a learned variance that of every pixel, sqrt(max(variance - what the residual takes, 0)).

        Args:
            step: the row of the table.
            variance: what the network says, see `Step.spread`.

        Raises:
            ValueError: the variance is learned, and sigma' is no function of a residual.
        """
        if not step.is_learned:
            return self.sigma
        if self.residual is None:
            raise ValueError(
                f"expected sigma' to be sigma or to absorb the residual at t = {step.t}, where the variance is "
                "learned, got one that belongs to the table; fit it with variance=original"
            )
        learned, share = step.spread(variance), self.residual.taken(step)
        assert isinstance(learned, Tensor)
        return (learned.square() - share).clamp(min=0).sqrt() if share else learned


@dataclass(frozen=True)
class FittedCorrection:
    """A correction of one table.

    Args:
        steps: the table to sample with.
        corrections: one for each of its steps.
    """

    steps: Table
    corrections: Sequence[StepCorrection]

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None, step: Step) -> Tensor:
        """m~ at a step, (B, C, H, W), but for what a `CorrectedDenoiser` alone knows: an estimated bias."""
        return self.corrections[step.i].output(q, x_t, features)

    def sigma(self, step: Step, variance: Tensor | None = None) -> float | Tensor:
        """sigma' at a step, of every pixel where its variance is learned; see `StepCorrection.spread`."""
        return self.corrections[step.i].spread(step, variance)

    @property
    def rescalings(self) -> Sequence[Mapping[str, Rescaling]]:
        """The rescalings of the network's layers, by name, at every step; see `QuantizedDenoiser.rescaled`."""
        return [correction.rescalings for correction in self.corrections]

    @property
    def needs_features(self) -> bool:
        """Whether a step reads the features; a correction that reads none is a function of q and x_t."""
        return any(repair.needs_features for one in self.corrections for repair in one.repairs)

    @property
    def rescales(self) -> bool:
        """Whether a step changes layers of the network."""
        return any(one.rescalings for one in self.corrections)

    @property
    def pairs_rows(self) -> bool:
        """Whether layers quantize differences between the two rows of guidance at a step."""
        return any(one.pairs_rows for one in self.corrections)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network beside one a step; where there are any, a `CorrectedDenoiser` is needed."""
        return sum(one.estimates for one in self.corrections)

    def without_repairs(self) -> "FittedCorrection":
        """The table and sigma' alone, for a network that repairs its output itself, such as a `CorrectedNetwork`.

        It scales its input itself too.
        """
        bare = [dataclasses.replace(one, repairs=(), rescalings={}) for one in self.corrections]
        unscaled = (dataclasses.replace(step, input_scale=1.0) for step in self.steps)
        return FittedCorrection(self.steps.with_steps(unscaled), bare)

    def report(self) -> Sequence[StepReport]:
        """One report for each step."""
        return [one.report for one in self.corrections]

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiplications of all steps for one image of shape (C, H, W)."""
        return sum(repair.macs(shape) for one in self.corrections for repair in one.repairs)

    @property
    def size(self) -> int:
        """Bytes of all coefficients as they are saved."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        """Coefficients by step/place/kind/field, those of layers by step/rescaling/layer/field."""
        tensors: dict[str, Tensor] = {}
        for i, one in enumerate(self.corrections):
            for place, repair in enumerate(one.repairs):
                tensors |= {f"{i}/{place}/{repair.kind}/{name}": tensor for name, tensor in repair.tensors().items()}
            tensors |= {f"{i}/{RESCALING}/{name}": tensor for name, tensor in rescaling_tensors(one.rescalings).items()}
        return tensors

    def save(self, folder: Path) -> None:
        """Write `correction.json` and `correction.safetensors` into an existing folder."""
        tensors = self._tensors()
        tensors["sigma"] = _column([one.sigma for one in self.corrections])
        for name in REPORT:
            tensors[f"report/{name}"] = _column([getattr(one.report, name) for one in self.corrections])
        none = dict.fromkeys(RESIDUAL)
        residuals = [dataclasses.asdict(one.residual) if one.residual else none for one in self.corrections]
        for name in RESIDUAL:
            tensors[f"residual/{name}"] = _column([residual[name] for residual in residuals])
        # Steps may share a tensor, as interpolated ones do; a file holds each on its own.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / COEFFICIENTS)
        config = {
            "format": FORMAT,
            "table": self.steps.to_json(),
            "estimates": [one.estimates for one in self.corrections],
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "FittedCorrection":
        """Read what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: the files are broken, of another format or none that `save` wrote, such as of a kind of repair
                that does not exist.
        """
        for name in (CONFIG, COEFFICIENTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"expected {name} in {folder}, a folder that FittedCorrection.save wrote")
        try:
            config = json.loads((folder / CONFIG).read_text())
            if (version := config.get("format", 1)) != FORMAT:
                raise ValueError(f"their format is {version}, this version reads {FORMAT}")
            tensors, steps = load_file(folder / COEFFICIENTS), Table.from_json(config["table"])
            return cls(steps, _step_corrections(tensors, steps, config["estimates"]))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"expected coefficients that FittedCorrection.save wrote in {folder}, got others ({error}); "
                "fit or export it again"
            ) from error


def absorbing(corrections: Sequence[StepCorrection], steps: Table) -> Sequence[StepCorrection]:
    """The corrections of a table's steps, in a multistep sampler with sigma' that absorbs the `multistep_errors`.

    sigma'^2 = max(sigma^2 - absorbed error, 0); where the sampler adds no noise there is none.
    """
    residuals = [one.residual for one in corrections if one.residual is not None]
    if not any(any(step.c_0[1:]) for step in steps) or len(residuals) < len(corrections):
        return corrections
    absorbed = []
    for one, residual, error, step in zip(
        corrections, residuals, multistep_errors(residuals, steps), steps, strict=True
    ):
        absorbs = residual.absorbed != 0 and step.sigma > 0
        sigma = max(step.sigma**2 - residual.absorbed * error, 0.0) ** 0.5 if absorbs else step.sigma
        budget = error / step.sigma**2 if step.sigma > 0 else None
        absorbed.append(replace(one, sigma=sigma, report=replace(one.report, sigma_used=sigma, budget=budget)))
    return absorbed


def _step_corrections(tensors: dict[str, Tensor], steps: Table, estimates: Sequence[bool]) -> list[StepCorrection]:
    """The correction of every step, from tensors as `save` names them."""
    if not isinstance(estimates, list) or not all(isinstance(one, bool) for one in estimates):
        raise ValueError(f"expected true or false of every step as estimates, got {estimates!r:.60}")
    sigmas = tensors.pop("sigma").tolist()
    reports = [StepReport(**row) for row in _rows(tensors, "report", REPORT)]
    residuals = [None if None in row.values() else Residual(**row) for row in _rows(tensors, "residual", RESIDUAL)]
    rescalings = _rescalings({name: tensors.pop(name) for name in list(tensors) if f"/{RESCALING}/" in name})
    repairs = _repairs(tensors)
    if beyond := {i for i in repairs.keys() | rescalings.keys() if not 0 <= i < len(steps)}:
        raise ValueError(f"expected those of {len(steps)} steps, got some of step {min(beyond)}")
    rows = zip(sigmas, reports, estimates, residuals, strict=True)
    corrections = [
        StepCorrection(tuple(repairs[i]), sigma, report, estimated, rescalings[i], residual)
        for i, (sigma, report, estimated, residual) in enumerate(rows)
    ]
    if len(corrections) != len(steps):
        raise ValueError(f"expected numbers of {len(steps)} steps, got those of {len(corrections)}")
    return corrections


def _column(values: Sequence[float | None]) -> Tensor:
    """One number of every step, float64; NaN stands for None."""
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _rows(tensors: dict[str, Tensor], group: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The inverse of a group's columns: its fields at every step by name, taken out of the tensors."""
    columns = [tensors.pop(f"{group}/{name}").tolist() for name in names]
    return [
        {name: None if math.isnan(value) else value for name, value in zip(names, values, strict=True)}
        for values in zip(*columns, strict=True)
    ]


def _repairs(tensors: dict[str, Tensor]) -> defaultdict[int, list[Repair]]:
    """The repairs of every step, from tensors named step/place/kind/field."""
    parts: dict[tuple[int, int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        i, place, kind, field = name.split("/")
        parts.setdefault((int(i), int(place), kind), {})[field] = tensor
    unknown = {kind for *_, kind in parts} - set(KINDS)
    if unknown:
        raise ValueError(f"expected repairs of the kinds {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    repairs: defaultdict[int, list[Repair]] = defaultdict(list)
    for (step, _, kind), fields in sorted(parts.items(), key=lambda part: part[0]):
        repairs[step].append(KINDS[kind](**fields))
    return repairs


def _rescalings(tensors: Mapping[str, Tensor]) -> defaultdict[int, dict[str, Rescaling]]:
    """The rescalings of every step, from tensors named step/rescaling/layer/field."""
    parts: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        i, _, layer = name.split("/", 2)
        parts[int(i)][layer] = tensor
    return defaultdict(dict, {i: rescalings_of_tensors(layers) for i, layers in parts.items()})
