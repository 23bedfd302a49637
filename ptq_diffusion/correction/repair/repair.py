"""The contract of a repair: m~ at one step from q, x_t and the output layer's input."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor


class Repair(ABC):
    """An estimate of the float output at one step. Its fields are tensors, saved by their names.

    m~ is affine in (q, x_t, h). So the m~ of a guided combination of outputs, whose weights add up to 1, is the
    combination of their m~: a stock pipeline may guide behind a network that repairs every row by itself.
    """

    kind: ClassVar[str]

    @abstractmethod
    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:
        """m~, (B, C, H, W).

        Args:
            q: the quantized network's output, (B, C, H, W).
            x_t: the state that it was asked about, (B, C, H, W).
            features: the input of its output layer after that layer's activation quantizer, (B, F, H / p, W / p) of
                patches of p x p; None suffices where they are not needed.
        """

    @property
    @abstractmethod
    def needs_features(self) -> bool:
        """Whether m~ depends on the features; otherwise any tensor may stand for them."""

    @abstractmethod
    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiplications for one image of shape (C, H, W), those that fold into the output layer left out."""

    def identity_like(self) -> "Repair":
        """The repair of this kind and these shapes that leaves the output as it is."""
        return type(self)(**{name: torch.zeros_like(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> Mapping[str, Tensor]:
        """The coefficients by name."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}  # type: ignore[arg-type]


def repaired_output(repairs: Sequence[Repair], q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:
    """m~ of repairs one after the other, (B, C, H, W); without any q itself.

    Args:
        repairs: of a step.
        q: the quantized network's output, as `Repair.output` has it, and so are those behind it.
        x_t: the state.
        features: the input of the output layer.
    """
    for repair in repairs:
        q = repair.output(q, x_t, features)
    return q
