"""Denoisers around any torch module, the base of a network of the user's own."""

import copy
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.denoiser import Denoiser, Output, Timestep
from ptq_diffusion.model.macs import Macs, count_macs, layers_of
from ptq_diffusion.model.site import Kind, Role, Site

log = logging.getLogger(__name__)


class ModuleDenoiser(Denoiser):
    """A torch module whose convolutions and linear layers are its sites; products of attention stay float.

    A layer that `call` does not reach as a module is no site and stays float, such as the output projection of an
    `nn.MultiheadAttention`, which reads its weight alone.

    A subclass says in `call` how the module is asked. Of a network that reads labels it overrides `needs`, `classes`
    and, for guidance, `null`.

    Args:
        network: the module; it is not changed.
        shape: of one state, (C, H, W).
        scheduler_config: of the diffusers scheduler that the module was trained with.
        first: the name of the layer that states enter by.
        last: the name of the output layer, a convolution that is given a map, (B, F, H, W).

    Raises:
        ValueError: the module has no such layers; once sites are asked for, `call` does not reach them.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        scheduler_config: Mapping[str, Any],
        first: str,
        last: str,
    ) -> None:
        super().__init__()
        layers = layers_of(network)
        if odd := [name for name in (first, last) if name not in layers]:
            raise ValueError(
                f"expected the first and the last of the layers {', '.join(layers)}, got {odd[0]!r}; name one of them"
            )
        self._network = network.eval().requires_grad_(False)
        self.shape, self.scheduler_config = shape, dict(scheduler_config)
        self._roles = {first: Role.FIRST, last: Role.LAST}

    @abstractmethod
    def call(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The native output (epsilon, v or x0) of `self.network`, (B, C, H, W).

        Args:
            x: states, (B, C, H, W).
            t: the time of each, (B,) float32.
            condition: of the B samples; None where there is none.
        """

    @property
    def network(self) -> nn.Module:
        return self._network

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        # Not len() nor float(), which make numbers that are open in a traced graph fixed ones.
        t = torch.as_tensor(step.t, dtype=torch.float32, device=x_t.device).repeat(x_t.shape[0])
        return Output(self.call(step.input_scale * x_t, t, condition))

    def with_network(self, network: nn.Module) -> Self:
        # What a subclass has beside the module is shared: its constructor may read files.
        other = copy.copy(self)
        other.__dict__["_modules"] = self._modules | {"_network": network}
        return other

    def attention_macs(self) -> int:
        return self._macs.attention

    def sites(self) -> Sequence[Site]:
        return self._sites

    @cached_property
    def _macs(self) -> Macs:
        try:
            return count_macs(copy.deepcopy(self._network).to("meta"), self._ask, ())
        # A module runs any code, so it may raise any error.
        except Exception as error:
            raise ValueError(
                f"expected a network that can be asked about {self.shape} on the meta device, got one that fails on it "
                f"({' '.join(str(error).split())[:300]}); mend `call` or the shape"
            ) from error

    def _ask(self, network: nn.Module) -> None:
        state, time = torch.zeros(1, *self.shape, device="meta"), torch.zeros(1, device="meta")
        condition = self.blank_condition(1, torch.device("meta"))
        shape = tuple(self.with_network(network).call(state, time, condition).shape)
        if shape != (1, *self.shape):
            raise ValueError(f"its output is of shape {shape[1:]}")

    @cached_property
    def _sites(self) -> Sequence[Site]:
        def site(name: str, layer: nn.Conv2d | nn.Linear) -> Site:
            kind = Kind.CONV2D if isinstance(layer, nn.Conv2d) else Kind.LINEAR
            role = self._roles.get(name, Role.INNER)
            shape, input_size = tuple(layer.weight.shape), self._macs.input_size[name]
            return Site(name, kind, role, self._macs.layers[name], shape, input_size=input_size)

        layers = layers_of(self._network)
        # Nothing can be observed of a layer that no forward calls, and no image depends on its bits.
        uncalled = [name for name in layers if not self._macs.layers[name]]
        if odd := [name for name in self._roles if name in uncalled]:
            raise ValueError(
                f"expected first and last layers that `call` reaches, got {odd[0]!r}, which it does not; name another"
            )
        if uncalled:
            log.info("not quantized, as no forward calls it: %s", ", ".join(uncalled))
        return [site(name, layer) for name, layer in layers.items() if name not in uncalled]
