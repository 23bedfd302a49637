"""Conditions: tensors that a conditional model is asked with beside the state and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Tensors of B samples, one row each; None where a model has no such input.

    Args:
        labels: class labels, (B,) int64.
        embeddings: of the tokens of the prompts, (B, L, D).
        mask: which of the L tokens count, (B, L).
        pooled: embedding of a whole prompt, (B, D).
        ids: the added time ids of SDXL (original size, crop, target size), (B, 6).
        scale: guidance that the network embeds, (B,) float32; classifier-free guidance is a `Guided`.

    Raises:
        ValueError: no tensor at all, or tensors of different numbers of samples.
    """

    labels: Tensor | None = None
    embeddings: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    ids: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        # Not len(), which makes a number that is open in a traced graph a fixed one.
        counts = {name: tensor.shape[0] for name, tensor in self.tensors().items()}
        if not counts:
            names = ", ".join(field.name for field in fields(self))
            raise ValueError(f"expected a condition of at least one of {names}, got none; use None for no condition")
        first, *others = counts.values()
        if any(count != first for count in others):
            listing = ", ".join(f"{name} of {count}" for name, count in counts.items())
            raise ValueError(f"expected conditions of one number of samples, got {listing}")

    def __len__(self) -> int:
        """The number of samples, B."""
        return len(next(iter(self.tensors().values())))

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Condition":
        """The condition whose `tensors()` these are.

        Raises:
            ValueError: names that a condition does not have.
        """
        if unknown := sorted(tensors.keys() - {field.name for field in fields(cls)}):
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"expected tensors of a condition ({names}), got {', '.join(unknown)}")
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in pairs if tensor is not None}

    def rows(self, samples: slice | Sequence[int] | Tensor) -> "Condition":
        """The condition of some of the samples, a slice or indices, which may repeat."""
        index = samples if isinstance(samples, slice | Tensor) else list(samples)
        return Condition(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> "Condition":
        """The condition on another device."""
        return Condition(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def as_dtype(self, dtype: torch.dtype) -> "Condition":
        """The condition with all tensors of floating-point numbers in one dtype."""
        pairs = self.tensors().items()
        return Condition(**{name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in pairs})

    def cloned(self) -> "Condition":
        """The condition in memory of its own, which may take part in gradients though it was made without."""
        return Condition(**{name: tensor.clone() for name, tensor in self.tensors().items()})

    def expanded(self, samples: int) -> "Condition":
        """The condition of one sample for `samples` of them.

        Raises:
            ValueError: the condition is of another number of samples than one.
        """
        if len(self) != 1:
            raise ValueError(f"expected the condition of 1 sample to repeat, got one of {len(self)}; take rows of it")
        return Condition(**{name: tensor.expand(samples, *tensor.shape[1:]) for name, tensor in self.tensors().items()})


def rows_of(condition: Condition | None, samples: slice | Sequence[int] | Tensor) -> Condition | None:
    """The condition of some of the samples, where there is any."""
    return None if condition is None else condition.rows(samples)


def concatenated(first: Condition, second: Condition) -> Condition:
    """The rows of a condition, then those of another.

    Raises:
        ValueError: they have different tensors, or tensors of different shapes of a row.
    """
    shapes = [{name: tuple(tensor.shape[1:]) for name, tensor in it.tensors().items()} for it in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"expected two conditions of the same tensors, got {_listing(shapes[0])} and {_listing(shapes[1])}; encode "
            "both alike"
        )
    others = second.tensors()
    return Condition(**{name: torch.cat([tensor, others[name]]) for name, tensor in first.tensors().items()})


def _listing(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} of {list(shape)} a row" for name, shape in shapes.items())
