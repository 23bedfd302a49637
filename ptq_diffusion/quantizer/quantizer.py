"""The contract of a quantizer of one tensor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import Any

from torch import Tensor, nn


class State(Enum):
    """What a quantizer is doing; the way leads from OBSERVING to FROZEN and not back."""

    OBSERVING = "observing"
    FROZEN = "frozen"


class Quantizer(nn.Module, ABC):
    """Maps a tensor to the nearest values of an integer grid, once it has seen what the tensor looks like."""

    def __init__(self, per_channel: bool) -> None:
        """A quantizer with one grid for each slice along axis 0 if `per_channel`, which only a weight can have."""
        super().__init__()
        self.per_channel = per_channel
        self.state = State.OBSERVING

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Update statistics; changes nothing else."""

    @abstractmethod
    def freeze(self) -> None:
        """Turn statistics into grid parameters and drop them.

        Raises:
            RuntimeError: nothing was observed, or the quantizer is frozen already.
        """

    @abstractmethod
    def forget(self) -> None:
        """Drop statistics."""

    def adopt(self, buffers: Mapping[str, Tensor]) -> None:
        """Freeze with the buffers, by name, of a quantizer that was frozen earlier."""
        self.require(State.OBSERVING)
        for name, value in buffers.items():
            setattr(self, name, value.clone())
        self.forget()
        self.state = State.FROZEN

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What a frozen quantizer is beside its bits and buffers: the options of `blank`, which json can hold."""

    @classmethod
    @abstractmethod
    def blank(cls, bits: int, **settings: Any) -> "Quantizer":
        """One that is only there to adopt the buffers of another of these bits and settings.

        Raises:
            TypeError: a setting is missing or unknown.
            ValueError: the bits are out of range.
        """

    @abstractmethod
    def to_integers(self, x: Tensor) -> Tensor:
        """The integers of x on the grid, int32, the shape of x."""

    @abstractmethod
    def from_integers(self, integers: Tensor) -> Tensor:
        """The values that integers stand for."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x_hat, equal bit for bit to `from_integers(to_integers(x))`."""

    def require(self, state: State) -> None:
        """Raise RuntimeError unless the quantizer is in the given state."""
        if self.state is not state:
            raise RuntimeError(
                f"expected a quantizer that is {state.value}, this one is {self.state.value}; "
                "a quantizer is observed first, then frozen once, then used"
            )
