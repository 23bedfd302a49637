"""The contract of a model: a network that is asked (x_t, step, condition) and answers with its output."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ptq_diffusion.artefact.digest import tensors_digest
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.site import Site


class Timestep(Protocol):
    """A row of a sampler's table, as far as a network needs it."""

    @property
    def i(self) -> int:
        """The row's index, 0 at t = T: a quantized network has settings for every row."""

    @property
    def t(self) -> float:
        """The time that the network is told."""

    @property
    def input_scale(self) -> float:
        """The factor of x_t before the network sees it."""


class Output(NamedTuple):
    """The answer of a denoiser.

    Attributes:
        m: the native output (epsilon, v, x0 or the velocity of a flow), (B, C, H, W).
        features: the input of a quantized network's output layer, after the activation quantizer, (B, F, H/p, W/p), p
            being the patch size, combined over the rows of an image as m is; None for a float network.
        variance: the network's prediction of the variance of a sampler's noise, (B, C, H, W), see `Step.spread`; it is
            that of the conditional rows, not guided. None of a network that predicts none.
    """

    m: Tensor
    features: Tensor | None = None
    variance: Tensor | None = None

    @property
    def with_variance(self) -> Tensor:
        """m and, where there is one, the variance behind it, (B, C or 2 C, H, W), as `sampler.sample` reads it."""
        return self.m if self.variance is None else torch.cat([self.m, self.variance], dim=1)


class Denoiser(nn.Module, ABC):
    """A network with all that sampling needs to know of it.

    Attributes:
        shape: of one latent, (C, H, W).
        scheduler_config: the configuration of the diffusers scheduler that it was trained with, with its prediction
            type.
        dtype: that the network computes in; states, m and all statistics are float32 in any case.
    """

    shape: tuple[int, int, int]
    scheduler_config: Mapping[str, Any]
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        """Compute the output on states (B, C, H, W) that all are at one step of a table.

        Args:
            x_t: the states.
            step: the row of the table.
            condition: the condition of the B samples; None for an unconditional model.
        """

    @property
    def needs(self) -> Sequence[str]:
        """The names of the tensors of a condition that the network reads; none of an unconditional one."""
        return ()

    @property
    def classes(self) -> int | None:
        """The number of classes, whose labels are 0 to one less; None of a network that reads no labels."""
        return None

    @property
    def null(self) -> Condition | None:
        """The condition of one sample that means no class, for guidance; None where the network knows none."""
        return None

    def blank_condition(self, rows: int, device: torch.device) -> Condition | None:
        """A condition of zeros of all that the network reads, here labels; None where it reads nothing."""
        labels = torch.zeros(rows, dtype=torch.int64, device=device)
        return Condition(labels=labels) if "labels" in self.needs else None

    def rows_per_image(self, step: Timestep) -> int:  # noqa: ARG002
        """The number of rows of a batch that the network is asked about for one image at a step."""
        return 1

    def rows(self, images: Tensor, step: Timestep) -> Tensor:
        """The marks of the network's rows, (R B,), from those of images, (B,): a batch follows the other."""
        return images.repeat(self.rows_per_image(step))

    def combined(self, rows: Tensor, step: Timestep) -> Tensor:  # noqa: ARG002
        """Outputs or features of images, (B, ...), from those of the network's rows, (R B, ...), linear in them."""
        return rows

    @property
    def predicts_variance(self) -> bool:
        """Whether the network predicts a variance beside its output, for a sampler of a learned one."""
        return False

    @property
    def accepts_time_zero(self) -> bool:
        """Whether the network accepts t = 0; some take the logarithm of the time."""
        return True

    @property
    def patch_size(self) -> int:
        """The side of the patch of the state that one position of the output layer computes, in latent pixels."""
        return 1

    def feature_map(self, inputs: Tensor, size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """The inputs of the output layer as a map, (B, F, H/p, W/p), p being the patch size.

        Args:
            inputs: as the output layer is given them: a map already, or tokens (B, H/p x W/p, F).
            size: of the states, (H, W).
        """
        return inputs

    def unpatched(self, patches: Tensor) -> Tensor:
        """The output m, (B, C, H, W), from the output layer's as a map, (B, p p C', H/p, W/p); C' is C or more."""
        return patches[:, : self.shape[0]]

    def blocks(self) -> Sequence[str]:
        """The names of the network's residual and attention blocks, none within another; () where it has none."""
        return ()

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module whose layers the sites name."""

    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """Every layer and every product of attention that can be quantized, in the network's order."""

    @abstractmethod
    def attention_macs(self) -> int:
        """Multiply-accumulates of one forward of one sample in attention's products that are no sites."""

    def architecture(self, steps: Sequence[Timestep] = ()) -> Architecture:
        """The network as planning sees it, over a table; without one it is asked about one row a step."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        rows = tuple(self.rows_per_image(step) for step in steps)
        return Architecture(tuple(self.sites()), self.attention_macs(), parameters, rows)

    def fingerprint(self) -> str:
        """Sixteen hex digits over all that changes its outputs: the parameters of the network, and guidance."""
        return tensors_digest(self.network.state_dict())

    @abstractmethod
    def with_network(self, network: nn.Module) -> "Denoiser":
        """The same model around another network of its class, such as a quantized copy; neither is changed."""


class WrappedDenoiser(Denoiser):
    """Forwards every member of the contract but `predict`, `fingerprint` and `with_network` to another denoiser.

    Args:
        denoiser: the other one.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self._denoiser = denoiser
        self.shape, self.scheduler_config, self.dtype = denoiser.shape, denoiser.scheduler_config, denoiser.dtype

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser inside."""
        return self._denoiser

    @property
    def network(self) -> nn.Module:
        return self._denoiser.network

    @property
    def needs(self) -> Sequence[str]:
        return self._denoiser.needs

    @property
    def classes(self) -> int | None:
        return self._denoiser.classes

    @property
    def null(self) -> Condition | None:
        return self._denoiser.null

    def blank_condition(self, rows: int, device: torch.device) -> Condition | None:
        return self._denoiser.blank_condition(rows, device)

    def rows_per_image(self, step: Timestep) -> int:
        return self._denoiser.rows_per_image(step)

    def combined(self, rows: Tensor, step: Timestep) -> Tensor:
        return self._denoiser.combined(rows, step)

    @property
    def predicts_variance(self) -> bool:
        return self._denoiser.predicts_variance

    @property
    def accepts_time_zero(self) -> bool:
        return self._denoiser.accepts_time_zero

    @property
    def patch_size(self) -> int:
        return self._denoiser.patch_size

    def feature_map(self, inputs: Tensor, size: tuple[int, int]) -> Tensor:
        return self._denoiser.feature_map(inputs, size)

    def unpatched(self, patches: Tensor) -> Tensor:
        return self._denoiser.unpatched(patches)

    def blocks(self) -> Sequence[str]:
        return self._denoiser.blocks()

    def sites(self) -> Sequence[Site]:
        return self._denoiser.sites()

    def attention_macs(self) -> int:
        return self._denoiser.attention_macs()
