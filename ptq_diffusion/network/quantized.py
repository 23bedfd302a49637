"""Quantized denoisers: integers, and settings by step."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ptq_diffusion.model import Condition, Denoiser, Guided, Output, PairedRows, Role, Site, Timestep, WrappedDenoiser
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.network.attention import PROCESSOR, QuantizedAttention, quantized_attentions
from ptq_diffusion.network.backend import Backend, Integer, Simulated, require_float32
from ptq_diffusion.network.integers import StoredWeight
from ptq_diffusion.network.layer import CurrentStep, QuantizedLayer, require_shift
from ptq_diffusion.network.rescaling import Rescaling
from ptq_diffusion.network.step_settings import StepSettings
from ptq_diffusion.quantizer import WHOLE

BACKENDS: tuple[type[Backend], ...] = (Simulated, Integer)
"""The backends that a name stands for."""


class QuantizedDenoiser(WrappedDenoiser):
    """A denoiser whose layers hold integers and compute by the settings of the step that it is asked about.

    Attributes:
        plan: the bits of every site at every step.
        backend: how its layers are computed.

    Args:
        denoiser: around a network whose sites are quantized layers that share `current`.
        sites: of the float network.
        attention_macs: of the float network, those of products that are no sites.
        plan: that the layers were made by.
        current: the step, which `predict` sets.
        backend: that the layers are of; None for simulation.

    Raises:
        ValueError: the network has not exactly one output layer.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sites: Sequence[Site],
        attention_macs: int,
        plan: BitwidthPlan,
        current: CurrentStep,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(denoiser)
        self.backend = backend or Simulated()
        self._sites, self._attention_macs = tuple(sites), attention_macs
        self.plan, self._current = plan, current
        last = [site.name for site in sites if site.role is Role.LAST]
        if len(last) != 1:
            raise ValueError(f"expected a network with one output layer, got the output layers {last}")
        self.output_layer_name = last[0]

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        self.begin(step)
        with self._features() as features:
            output = self._denoiser.predict(x_t, step, condition)
        if len(features) != 1:
            raise ValueError(f"expected an output layer that is computed once, it was {len(features)} times")
        height, width = x_t.shape[2:]
        rows = self._denoiser.feature_map(features[0], (height, width))
        return output._replace(features=self._denoiser.combined(rows, step))

    def begin(self, step: Timestep) -> None:
        """Let all layers compute at a step, on the rows that the network is asked about there."""
        self._current.i, self._current.paired = step.i, self.rows_per_image(step) == 2

    def set_step(self, i: int) -> None:
        """Let all layers compute at step i on rows that are no pairs, for those who call parts of the network."""
        self._current.i, self._current.paired = i, False

    @contextmanager
    def _features(self) -> Iterator[list[Tensor]]:
        """Within this context the inputs of the output layer, on their grid, are collected."""
        features: list[Tensor] = []
        with self.output_layer.watch_input(features.append):
            yield features

    def sites(self) -> Sequence[Site]:
        return self._sites

    def attention_macs(self) -> int:
        return self._attention_macs

    def fingerprint(self) -> str:
        """Sixteen hex digits over all tensors of the denoiser, guidance, its plan, and the kinds of its grids."""
        forms = [forms] if (forms := self.forms()) else []
        text = json.dumps([self._denoiser.fingerprint(), self.plan.fingerprint(), self.symmetric(), *forms])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_network(self, network: nn.Module) -> Denoiser:
        return self._denoiser.with_network(network)

    def layer(self, name: str) -> QuantizedLayer:
        """The layer at a site."""
        layer = self.network.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        return layer

    @property
    def output_layer(self) -> QuantizedLayer:
        """The layer that computes the output."""
        return self.layer(self.output_layer_name)

    def layers(self) -> dict[str, QuantizedLayer]:
        """Every quantized layer, which has a weight, by its site's name; attention's products are none."""
        return {site.name: self.layer(site.name) for site in self._sites if site.weighted}

    def inner_layers(self) -> dict[str, QuantizedLayer]:
        """Every quantized layer but the output layer, by its site's name."""
        return {name: layer for name, layer in self.layers().items() if name != self.output_layer_name}

    def attentions(self) -> dict[str, QuantizedAttention]:
        """The processor of every attention layer whose products have quantized operands, by the layer's name."""
        layers = {name: self.network.get_submodule(name) for name in quantized_attentions(self._sites, self.plan)}
        processors = ((name, layer.get_submodule(PROCESSOR)) for name, layer in layers.items())
        return {name: processor for name, processor in processors if isinstance(processor, QuantizedAttention)}

    @property
    def settings(self) -> StepSettings:
        """The settings of all layers, and of all operands of attention's products where they are quantized."""
        layers = {name: layer.settings for name, layer in self.layers().items()}
        attentions = ((name, attention.settings()) for name, attention in self.attentions().items())
        operands = {f"{name}.{letter}": row for name, settings in attentions for letter, row in settings.items()}
        return StepSettings(layers | operands)

    def symmetric(self) -> list[tuple[str, bool, list[bool]]]:
        """Whether the grids of every operand are symmetric, and whether those of its weight's copies are, by name."""
        copies = {name: [bool(weight.symmetric) for weight in layer.weights] for name, layer in self.layers().items()}
        return [(name, settings.symmetric, copies.get(name, [])) for name, settings in self.settings.items()]

    def forms(self) -> dict[str, dict[str, Any]]:
        """Descriptions of the arithmetic of operands that have more than one grid found beforehand, by name."""
        forms = ((name, settings.form) for name, settings in self.settings.items())
        return {name: form.description() for name, form in forms if form != WHOLE}

    def with_settings(self, settings: StepSettings) -> "QuantizedDenoiser":
        """The network of the same integers with other settings; tensors are shared, and this one stays as it is."""
        # Only what has settings and what holds it is copied; everything below them and beside them is shared.
        shared = [*self.parameters(), *self.buffers(), *(module for module in self.modules() if _is_shared(module))]
        copied = copy.deepcopy(self, {id(part): part for part in (*shared, self._sites, self.plan)})
        for name, layer in copied.layers().items():
            layer.settings = settings[name]
        for name, attention in copied.attentions().items():
            attention.operands = nn.ModuleDict({letter: settings[f"{name}.{letter}"] for letter in attention.operands})
        return copied

    def unguided(self) -> "QuantizedDenoiser":
        """The same network without its guidance, for a pipeline that guides by itself; tensors are shared."""
        return self._around(self._denoiser.denoiser) if isinstance(self._denoiser, Guided | PairedRows) else self

    def paired(self) -> "QuantizedDenoiser":
        """The same network, asked about both rows of guidance at once by a pipeline that guides by itself."""
        return self._around(PairedRows(self.unguided().denoiser))

    def guided_as(self, model: Denoiser) -> "QuantizedDenoiser":
        """The same network with the guidance of another model, or without as that is; tensors are shared."""
        if not isinstance(model, Guided):
            return self.unguided()
        return self._around(Guided(self.unguided().denoiser, model.null, model.scale, model.interval))

    def _around(self, denoiser: Denoiser) -> "QuantizedDenoiser":
        return QuantizedDenoiser(denoiser, self._sites, self._attention_macs, self.plan, self._current, self.backend)

    def to_backend(self, backend: Backend | str) -> "QuantizedDenoiser":
        """The same integers and settings, computed by the backend of a name, or by one that is given.

        Args:
            backend: one, or its name: simulated, integer.

        Raises:
            ValueError: there is none of this name, or see `computed_by`.
            RuntimeError: see `computed_by`.
        """
        if isinstance(backend, Backend):
            return self.computed_by(backend)
        kinds = {kind.name: kind for kind in BACKENDS}
        if backend not in kinds:
            raise ValueError(f"expected a backend of {', '.join(kinds)}, got {backend!r}")
        return self.computed_by(kinds[backend]())

    def computed_by(self, backend: Backend) -> "QuantizedDenoiser":
        """The same integers and settings, computed by another backend; tensors are shared, and this one stays as it is.

        Stages call it rather than `to_backend`, whose names would bring the source of every backend into signatures.

        Raises:
            ValueError: the backend cannot compute a layer; the message names it and says why.
            RuntimeError: it lacks an operator on this machine.
        """
        if type(backend) is type(self.backend):
            return self
        backend.require(next(self.buffers()).device)
        require_float32(self.dtype, f"backend={backend.name}")
        self._require_computable(backend)
        copied = self.with_settings(self.settings)
        for name, layer in copied.layers().items():
            copied.network.set_submodule(name, backend.layer(layer))
        copied.backend = backend
        return copied

    def obstacles(self, backend: Backend) -> dict[str, str]:
        """Why a backend cannot compute a layer, or the products of an attention layer, by the names of these."""
        parts: dict[str, QuantizedLayer | QuantizedAttention] = self.layers() | self.attentions()
        return {name: reason for name, part in parts.items() if (reason := backend.obstacle(part))}

    def _require_computable(self, backend: Backend) -> None:
        if obstacles := self.obstacles(backend):
            count = len(self.layers() | self.attentions())
            name, reason = next(iter(obstacles.items()))
            raise ValueError(
                f"expected layers that backend={backend.name} can compute, got {len(obstacles)} of {count} that it "
                f"cannot: {name}, for {reason}; set backend=simulated, or bits and quantizers that it can compute: "
                "ptq-diffusion layers names all"
            )

    def rescaled(self, rescalings: Sequence[Mapping[str, Rescaling]]) -> "QuantizedDenoiser":
        """The network with rescalings of its layers, by name, for every step of a table.

        Raises:
            ValueError: the network has no such layer, or one of another number of channels or another input, or its
                settings are of another number of steps, or its backend cannot compute a rescaled layer.
        """
        if not any(rescalings):
            return self
        self._require_rescalable(rescalings)
        return self._computable(self.settings.rescaled(rescalings))

    def at(self, i: int, rescalings: Mapping[str, Rescaling]) -> "QuantizedDenoiser":
        """The network with layers rescaled at step i, the only step that it can be asked about then.

        Raises:
            ValueError: see `rescaled`.
        """
        if not rescalings:
            return self
        self._require_rescalable([rescalings])
        return self._computable(self.settings.at(i).rescaled([rescalings]))

    def _computable(self, settings: StepSettings) -> "QuantizedDenoiser":
        """The network with other settings, which its backend can compute too."""
        rescaled = self.with_settings(settings)
        if not isinstance(self.backend, Simulated):
            rescaled._require_computable(self.backend)
        return rescaled

    def _require_rescalable(self, rescalings: Sequence[Mapping[str, Rescaling]]) -> None:
        for name, rescaling in ((name, row[name]) for row in rescalings for name in row):
            self._require_channels(name, rescaling)

    def _require_channels(self, name: str, rescaling: Rescaling) -> None:
        shapes = {site.name: site.weight_shape for site in self._sites if site.weighted}
        channels = len(rescaling.gain)
        if name not in shapes or shapes[name][0] != channels:
            message = f"one of {shapes[name][0]}" if name in shapes else "no such layer"
            raise ValueError(
                f"expected a quantized layer {name} of {channels} output channels, which the correction was fitted "
                f"for, got {message}; fit it for this network"
            )
        if rescaling.shift is not None:
            require_shift(name, rescaling.shift, self.layer(name), shapes[name])


def _is_shared(module: nn.Module) -> bool:
    has_settings = any(isinstance(part, QuantizedLayer | QuantizedAttention) for part in module.modules())
    return isinstance(module, StoredWeight) or not has_settings
