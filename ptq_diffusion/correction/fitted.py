"""A fitted correction: for every step of one table a repair of the output and a noise scale. Saved as a folder."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.repair.filter import Filter, FilterInt8
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.network import Rescaling
from ptq_diffusion.network.rescaling import named, of_named
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

KINDS: dict[str, type[Repair]] = {kind.kind: kind for kind in (Affine, Filter, FilterInt8, Spectral)}
RESCALING = "rescaling"
CONFIG, COEFFICIENTS = "correction.json", "correction.safetensors"
FILES = (CONFIG, COEFFICIENTS)
"""The files of a folder."""
NO_RESIDUAL = (math.nan, math.nan)


@dataclass(frozen=True)
class StepCorrection:
    """What is done at one step.

    Args:
        repairs: applied to the output one after the other; none leaves it as it is.
        sigma: sigma', the standard deviation of the noise to add.
        report: what was found.
        estimates: ask the network a second time here for the bias of its output, see `Predictor`.
        rescalings: what layers of the network compute with here, by their names; the others as they are.
        residual: what sigma' follows from; None where it belongs to this table alone.
    """

    repairs: tuple[Repair, ...]
    sigma: float
    report: StepReport
    estimates: bool = False
    rescalings: Mapping[str, Rescaling] = dataclasses.field(default_factory=dict)
    residual: Residual | None = None

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:
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

    steps: Table
    found: Sequence[StepCorrection]

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None, step: Step) -> Tensor:
        """m~ at a step, (B, C, H, W), but for what only a `Predictor` knows: a bias that is estimated on the way."""
        return self.found[step.i].output(q, x_t, features)

    def sigma(self, step: Step) -> float:
        """sigma' at a step."""
        return self.found[step.i].sigma

    @property
    def rescalings(self) -> Sequence[Mapping[str, Rescaling]]:
        """The rescalings of the network's layers, by name, at every step; see `QuantizedDenoiser.rescaled`."""
        return [found.rescalings for found in self.found]

    @property
    def needs_features(self) -> bool:
        """Whether a step reads the features; a correction that reads none is a function of q and x_t."""
        return any(repair.needs_features for found in self.found for repair in found.repairs)

    @property
    def rescales(self) -> bool:
        """Whether a step changes layers of the network."""
        return any(found.rescalings for found in self.found)

    @property
    def evaluations(self) -> int:
        """How often the network is asked beside once a step; a correction that does so needs a `Predictor`."""
        return sum(found.estimates for found in self.found)

    def without_repairs(self) -> "FittedCorrection":
        """The table and sigma' alone, for a network that repairs its output itself, such as a `CorrectedNetwork`."""
        bare = [dataclasses.replace(found, repairs=(), rescalings={}) for found in self.found]
        return FittedCorrection(self.steps, bare)

    def report(self) -> Sequence[StepReport]:
        """What was found, one entry for each step."""
        return [found.report for found in self.found]

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiplications of all steps for one image of shape (C, H, W)."""
        return sum(repair.macs(shape) for found in self.found for repair in found.repairs)

    @property
    def size(self) -> int:
        """Bytes of all coefficients as they are saved."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        """Coefficients by step/place/kind/field, those of layers by step/rescaling/layer/field."""
        tensors: dict[str, Tensor] = {}
        for i, found in enumerate(self.found):
            for place, repair in enumerate(found.repairs):
                tensors |= {f"{i}/{place}/{repair.kind}/{name}": tensor for name, tensor in repair.tensors().items()}
            tensors |= {f"{i}/{RESCALING}/{name}": tensor for name, tensor in named(found.rescalings).items()}
        return tensors

    def save(self, folder: Path) -> None:
        """Write `correction.json` and `correction.safetensors` into an existing folder."""
        tensors = self._tensors()
        tensors["sigma"] = torch.tensor([found.sigma for found in self.found], dtype=torch.float64)
        tensors["report"] = torch.tensor([_numbers(found.report) for found in self.found], dtype=torch.float64)
        left = [dataclasses.astuple(found.residual) if found.residual else NO_RESIDUAL for found in self.found]
        tensors["residual"] = torch.tensor(left, dtype=torch.float64)
        # Steps may share a tensor, as interpolated ones do; a file holds each on its own.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / COEFFICIENTS)
        config = {
            "table": self.steps.to_json(),
            "estimates": [found.estimates for found in self.found],
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "FittedCorrection":
        """Read what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: the files are broken or none that `save` wrote, such as of a kind of repair that does not exist.
        """
        for name in (CONFIG, COEFFICIENTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"expected {name} in {folder}, a folder that FittedCorrection.save wrote")
        try:
            tensors, config = load_file(folder / COEFFICIENTS), json.loads((folder / CONFIG).read_text())
            steps = Table.from_json(config["table"])
            return cls(steps, _found(tensors, steps, config["estimates"]))
        except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"expected coefficients that FittedCorrection.save wrote in {folder}, got others ({error}); "
                "fit or export it again"
            ) from error


def _found(tensors: dict[str, Tensor], steps: Sequence[Step], estimates: Sequence[bool]) -> list[StepCorrection]:
    """Every step's, from tensors as `save` names them."""
    numbers = [tensors.pop(name).tolist() for name in ("sigma", "report", "residual")]
    rescalings = _rescalings({name: tensors.pop(name) for name in list(tensors) if f"/{RESCALING}/" in name})
    repairs = _repairs(tensors)
    if beyond := {i for i in repairs.keys() | rescalings.keys() if not 0 <= i < len(steps)}:
        raise ValueError(f"expected those of {len(steps)} steps, got some of step {min(beyond)}")
    return [
        StepCorrection(tuple(repairs[i]), sigma, _report(told), estimated, rescalings[i], _residual(left))
        for i, (_, sigma, told, left, estimated) in enumerate(zip(steps, *numbers, estimates, strict=True))
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
    found: defaultdict[int, list[Repair]] = defaultdict(list)
    for (step, _, kind), fields in sorted(parts.items(), key=lambda part: part[0]):
        found[step].append(KINDS[kind](**fields))
    return found


def _rescalings(tensors: Mapping[str, Tensor]) -> defaultdict[int, dict[str, Rescaling]]:
    """Those of every step, from tensors named step/rescaling/layer/field."""
    parts: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        i, _, layer = name.split("/", 2)
        parts[int(i)][layer] = tensor
    return defaultdict(dict, {i: of_named(layers) for i, layers in parts.items()})


def _numbers(report: StepReport) -> list[float]:
    """The report's fields in order; NaN stands for None."""
    return [math.nan if value is None else value for value in dataclasses.astuple(report)]


def _report(numbers: Sequence[float]) -> StepReport:
    names = [field.name for field in dataclasses.fields(StepReport)]
    values = {name: None if math.isnan(x) else x for name, x in zip(names, numbers, strict=True)}
    return StepReport(**values)  # type: ignore[arg-type]


def _residual(numbers: Sequence[float]) -> Residual | None:
    return None if any(map(math.isnan, numbers)) else Residual(*numbers)
