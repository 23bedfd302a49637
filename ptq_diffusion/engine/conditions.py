"""Conditions of samples: labels drawn like noise, or rows of encoded prompts; and the null condition of guidance."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.data import Labels
from ptq_diffusion.data.prompts import prompt_number
from ptq_diffusion.model import Condition, Denoiser

ENCODED, ORDER = "prompts.safetensors", "prompts.json"
"""Files of encoded prompts: a row for every distinct prompt and the negative one, and which row each prompt has."""
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
    """The encoded prompt of every sample, see `prompt_number`, of every seed.

    Args:
        distinct: a row for every distinct prompt.
        order: the row of every prompt.
        negative: of one sample.
        embedded: the guidance scale that the network is told; None where it reads none.
    """

    distinct: Condition
    order: Sequence[int]
    negative: Condition
    embedded: float | None = None

    def of(self, seed: int, indices: Sequence[int], purpose: str) -> Condition:  # noqa: ARG002
        rows = [self.order[prompt_number(index, purpose, len(self.order))] for index in indices]
        return with_scale(self.distinct.rows(rows), self.embedded)

    def null(self) -> Condition:
        return self.negative

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        parts: Mapping[str, Condition] = {PROMPT: self.distinct, NEGATIVE: self.negative}
        tensors = {f"{part}/{name}": row for part, rows in parts.items() for name, row in rows.tensors().items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ENCODED)
        (folder / ORDER).write_text(json.dumps(list(self.order)) + "\n")

    @classmethod
    def load(cls, folder: Path, embedded: float | None = None) -> "EncodedPrompts":
        """Read what `save` wrote."""
        tensors = load_file(folder / ENCODED)
        distinct, negative = (
            Condition.of_tensors(
                {name.removeprefix(f"{part}/"): row for name, row in tensors.items() if name.startswith(f"{part}/")}
            )
            for part in (PROMPT, NEGATIVE)
        )
        return cls(distinct, json.loads((folder / ORDER).read_text()), negative, embedded)


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
