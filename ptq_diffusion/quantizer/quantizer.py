"""The contract of a quantizer of one tensor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Self

from torch import Tensor, nn

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.form import Form
from ptq_diffusion.quantizer.granularity import Granularity


class State(Enum):
    """The phase of a quantizer; the way leads from OBSERVING to FROZEN and not back."""

    OBSERVING = "observing"
    FROZEN = "frozen"


class Quantizer(nn.Module, ABC):
    """Maps a tensor to the nearest values of integer grids, once it has observed such tensors.

    Class attributes:
        signed: whether numbers below zero have values.

    Attributes:
        grid: the integers of every group.
        scale: of every group, float32.
        zero_point: of every group, int32.

    Args:
        granularity: the groups of numbers that have a grid each.
    """

    signed: ClassVar[bool] = True
    grid: Grid
    scale: Tensor
    zero_point: Tensor

    def __init__(self, granularity: Granularity) -> None:
        super().__init__()
        self.granularity = granularity
        self.state = State.OBSERVING

    def of_input(self, channels: int, skip: int | None = None) -> Self:
        """Adapt the granularity to a layer's channel axis and skip connection, in place; call before observing.

        Returns itself.

        Args:
            channels: the dimension of their channels.
            skip: how many channels lie in front of those of a concatenated skip connection; None without one.
        """
        self.granularity = self.granularity.of_input(channels, skip)
        return self

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
    def observation(self) -> Mapping[str, Tensor]:
        """The statistics of all that was observed, by name, which do not depend on the bits.

        Raises:
            RuntimeError: nothing was observed, or the quantizer is frozen.
        """

    @abstractmethod
    def observed(self, *observations: Mapping[str, Tensor]) -> None:
        """Take the statistics that other quantizers of this kind observed, of any bits, in place of observing.

        Raises:
            RuntimeError: the quantizer is frozen.
            ValueError: statistics of another kind of quantizer.
        """

    @property
    def form(self) -> Form:
        """The arithmetic of a quantizer of inputs, by which a network computes with its scales.

        Raises:
            TypeError: a quantizer of another kind, whose arithmetic a network cannot store.
        """
        raise TypeError(f"expected a quantizer of inputs whose form a network can store, got {type(self).__name__}")

    @abstractmethod
    def to_integers(self, x: Tensor) -> Tensor:
        """The integers of x on the grid, int32, the shape of x."""

    @abstractmethod
    def from_integers(self, integers: Tensor) -> Tensor:
        """The values that integers stand for, float32."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x_hat in the dtype of x, equal bit for bit to `from_integers(to_integers(x))` cast to it."""

    def require(self, state: State) -> None:
        """Raise RuntimeError unless the quantizer is in the given state."""
        if self.state is not state:
            raise RuntimeError(
                f"expected a quantizer that is {state.value}, this one is {self.state.value}; "
                "a quantizer is observed first, then frozen once, then used"
            )
