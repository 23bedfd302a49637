"""Networks of diffusers with the scheduler that they were trained with."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.denoiser import Denoiser, Output, Timestep
from ptq_diffusion.model.family import Family
from ptq_diffusion.model.loading import load_folder
from ptq_diffusion.model.macs import Macs, count_macs, layers_of
from ptq_diffusion.model.site import Kind, Role, Site, product_sites


class DiffusersDenoiser(Denoiser):
    """A network of a diffusers class and its scheduler's configuration. m is the first C channels of its output.

    Args:
        network: of the family's class, or a quantized copy of one; it is not changed.
        family: how networks of its class are called.
        config: the configuration of the network, of which the sites are told.
        scheduler_config: the scheduler's configuration.

    Raises:
        ValueError: the family cannot ask such a network.
    """

    def __init__(
        self, network: nn.Module, family: Family, config: Mapping[str, Any], scheduler_config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self._network, self.family = network, family
        # Private entries say where a configuration came from.
        self.config = {name: value for name, value in config.items() if not name.startswith("_")}
        self.shape = family.shape(config)
        self.scheduler_config = dict(scheduler_config)

    @classmethod
    def from_folder(cls, path: str) -> "DiffusersDenoiser":
        """Load what a diffusers pipeline saved: `unet/` (safetensors only) and `scheduler/`, or the same at one place.

        Weights of half precision are computed with in float32.

        Args:
            path: the folder, or `bundled:NAME`.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks one of its files.
            ValueError: the pipeline is a latent one, the network is of no known family or quantized already, its files
                are broken or do not belong together, or no model of this name is bundled.
        """
        network, family, scheduler_config = load_folder(path)
        return cls(network.eval().requires_grad_(False), family, dict(network.config), scheduler_config)

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def needs(self) -> Sequence[str]:
        return tuple(self.family.needs(self.config))

    @property
    def classes(self) -> int | None:
        return self.family.classes(self.config)

    @property
    def null(self) -> Condition | None:
        return self.family.null(self.config)

    @property
    def answers_at_zero(self) -> bool:
        return self.family.answers_at_zero(self.config)

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        m = self.family.call(self._network, step.input_scale * x_t, step.t, condition)
        return Output(m[:, : self.shape[0]])

    def with_network(self, network: nn.Module) -> "DiffusersDenoiser":
        return DiffusersDenoiser(network, self.family, self.config, self.scheduler_config)

    def sites(self) -> Sequence[Site]:
        return self._sites

    def attention_macs(self) -> int:
        return self._macs.attention

    @cached_property
    def _float_network(self) -> ModelMixin:
        """A network of the configuration on the meta device: layers and shapes without weights."""
        with torch.device("meta"):
            return self.family.network_class.from_config(self.config).eval()

    @cached_property
    def _macs(self) -> Macs:
        try:
            attentions = self.family.attentions(self._float_network)
            return count_macs(self._float_network, self._ask, attentions)
        # Options that fit each other when a network is made may still give blocks of sizes that do not.
        except Exception as error:
            raise ValueError(
                f"expected a network that can be asked about {self.shape}, got one that fails on it "
                f"({' '.join(str(error).split())[:300]}); mend the sizes and blocks in its config.json"
            ) from error

    def _ask(self, network: nn.Module) -> None:
        state, time = torch.zeros(1, *self.shape, device="meta"), torch.zeros((), device="meta")
        rows = {
            name: torch.zeros(1, *shape, device="meta", dtype=torch.int64 if name == "labels" else torch.float32)
            for name, shape in self.family.needs(self.config).items()
        }
        shape = self.family.call(network, state, time, Condition(**rows) if rows else None).shape
        if shape[2:] != state.shape[2:]:
            raise ValueError(f"its output is of {shape[2]}x{shape[3]}")

    @cached_property
    def _sites(self) -> Sequence[Site]:
        roles = {self.family.first: Role.FIRST, self.family.last: Role.LAST}
        layers, sites = layers_of(self._float_network), list[Site]()
        for name, _ in self._float_network.named_modules():
            if name in self._macs.products:
                sites += product_sites(name, self._macs.products[name])
            elif layer := layers.get(name):
                kind = Kind.CONV2D if isinstance(layer, nn.Conv2d) else Kind.LINEAR
                role, macs = roles.get(name, Role.INNER), self._macs.layers[name]
                sites.append(Site(name, kind, role, macs, tuple(layer.weight.shape)))
        return sites
