"""Conditions: what a conditional model is told beside the state and the time."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Tensors of B samples, one row each; None where a model has no such input.

    Args:
        labels: class labels, (B,) int64.
        embeddings: of the prompts, (B, L, D).
        pooled: embedding of a whole prompt, (B, D).
        scale: of classifier-free guidance, (B,) float32.

    Raises:
        ValueError: tensors of different numbers of samples.
    """

    labels: Tensor | None = None
    embeddings: Tensor | None = None
    pooled: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {name: len(tensor) for name, tensor in self.tensors().items()}
        if len(set(counts.values())) > 1:
            listing = ", ".join(f"{name} of {count}" for name, count in counts.items())
            raise ValueError(f"expected conditions of one number of samples, got {listing}")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in pairs if tensor is not None}

    def rows(self, samples: slice) -> "Condition":
        """The condition of some of the samples."""
        return Condition(**{name: tensor[samples] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> "Condition":
        """The condition on another device."""
        return Condition(**{name: tensor.to(device) for name, tensor in self.tensors().items()})
