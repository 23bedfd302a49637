"""Conditions of samples: labels drawn like noise, or rows of encoded prompts; and the null condition of guidance."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ptq_diffusion.artefact.files import read_json, write_text
from ptq_diffusion.data import Labels
from ptq_diffusion.data.prompts import prompt_number
from ptq_diffusion.model import Condition, Denoiser

ENCODED, ORDER = "chunks", "prompts.json"
"""Encoded prompts: a folder of files with a row for every distinct prompt, and a file of which row each prompt has."""
NEGATIVE = "negative"
"""First part of the names of the negative prompt's tensors."""
PROMPT = "prompt"
"""First part of the names of the tensors of distinct prompts."""


class ConditionSource(ABC):
    """The condition of every sample, a function of (seed, index, purpose), whatever its batch.

    Attributes:
        embedded: the guidance scale that the network is told; None where it reads none.
    """

    embedded: float | None = None

    @abstractmethod
    def of(self, seed: int, indices: Sequence[int], purpose: str) -> Condition | None:
        """The condition of some samples; None where there is none.

        Args:
            seed: the run's seed.
            indices: which samples.
            purpose: what they are for.
        """

    def null(self) -> Condition | None:
        """The condition of one sample to guide away from, without a scale; None where the source knows none."""
        return None


class Unconditional(ConditionSource):
    """No condition."""

    def of(self, seed: int, indices: Sequence[int], purpose: str) -> None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class DrawnLabels(ConditionSource):
    """A class label for every sample.

    Args:
        labels: which are drawn.
        classes: of the network.
        embedded: the guidance scale that the network is told; None where it reads none.
    """

    labels: Labels
    classes: int
    embedded: float | None = None

    @classmethod
    def of_network(cls, labels: Labels, classes: int | None, embedded: float | None) -> "DrawnLabels":
        """The labels of a network of so many classes.

        Raises:
            ValueError: it has none, or not those.
        """
        if classes is None:
            raise ValueError("expected a model with class labels, got one without; set condition=none or another")
        labels.require(classes)
        return cls(labels, classes, embedded)

    def of(self, seed: int, indices: Sequence[int], purpose: str) -> Condition:
        condition = Condition(labels=self.labels.draw(self.classes, seed, indices, purpose))
        return with_scale(condition, self.embedded)

    def null(self) -> Condition | None:
        label = self.labels.no_class
        return None if label is None else Condition(labels=torch.tensor([label]))


@dataclass(frozen=True)
class EncodedPrompts(ConditionSource):
    """The encoded prompt of every sample, see `prompt_number`, of every seed; no other row is read of the files.

    Args:
        files: a row for every distinct prompt in its place, and in the first the row of the negative prompt.
        rows_per_file: of every file but the last, which may have fewer.
        order: the row of every prompt.
        embedded: the guidance scale that the network is told; None where it reads none.
    """

    files: Sequence[Path]
    rows_per_file: int
    order: Sequence[int]
    embedded: float | None = None

    def of(self, seed: int, indices: Sequence[int], purpose: str) -> Condition:  # noqa: ARG002
        rows = [self.order[prompt_number(index, purpose, len(self.order))] for index in indices]
        return with_scale(self._rows(rows), self.embedded)

    def null(self) -> Condition:
        return Condition.of_tensors(_read(self.files[0], NEGATIVE, [0]))

    def _rows(self, rows: Sequence[int]) -> Condition:
        """The conditions of some distinct prompts, which may repeat."""
        distinct, size = sorted(set(rows)), self.rows_per_file
        parts = [
            _read(self.files[place], PROMPT, [row % size for row in group])
            for place, group in groupby(distinct, lambda row: row // size)
        ]
        places = {row: place for place, row in enumerate(distinct)}
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Condition.of_tensors(joined).rows([places[row] for row in rows])

    @classmethod
    def load(cls, folder: Path, embedded: float | None = None) -> "EncodedPrompts":
        """The prompts of an artefact: files of `stored_prompts`, in the order of their names, and `save_order`."""
        order = read_json(folder / ORDER)
        files = sorted((folder / ENCODED).glob("*.safetensors"))
        return cls(files, order["rows_per_file"], order["rows"], embedded)


def stored_prompts(prompts: Condition, negative: Condition | None = None) -> dict[str, Tensor]:
    """The tensors of a file of encoded prompts, by name.

    Args:
        prompts: a row for each.
        negative: of the negative prompt, one row.
    """
    parts = {PROMPT: prompts} | ({} if negative is None else {NEGATIVE: negative})
    return {f"{part}/{name}": tensor for part, rows in parts.items() for name, tensor in rows.tensors().items()}


def save_order(folder: Path, rows: Sequence[int], rows_per_file: int) -> None:
    """Write which row each prompt has, and how many rows a file."""
    write_text(folder / ORDER, json.dumps({"rows_per_file": rows_per_file, "rows": list(rows)}) + "\n")


def _read(file: Path, part: str, rows: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of some rows of a part of a file of encoded prompts."""
    with safe_open(file, framework="pt") as tensors:
        slices = {
            name.removeprefix(f"{part}/"): tensors.get_slice(name)
            for name in tensors.keys()  # noqa: SIM118
            if name.startswith(f"{part}/")
        }
        return {name: torch.cat([piece[row : row + 1] for row in rows]) for name, piece in slices.items()}


def with_scale(condition: Condition, scale: float | None) -> Condition:
    """The condition with a guidance scale for the network to embed, if any."""
    if scale is None:
        return condition
    return dataclasses.replace(condition, scale=torch.full((len(condition),), scale))


def null_condition(model: Denoiser, source: ConditionSource) -> Condition:
    """The condition of one sample to guide away from: the source's, or else the network's.

    Raises:
        ValueError: neither knows one.
    """
    null = source.null()
    null = model.null if null is None else null
    if null is None:
        raise ValueError(
            "expected a network that knows a null condition to guide away from, got one without; set "
            "condition.guidance.scale=1, or condition.source.no_class to the label that means none"
        )
    return with_scale(null, source.embedded)
