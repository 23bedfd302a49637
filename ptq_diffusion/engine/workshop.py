"""Objects that several stages build from their configuration in the same way, each built once."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig

from ptq_diffusion.data import Labels
from ptq_diffusion.engine.conditions import (
    ConditionSource,
    DrawnLabels,
    EncodedPrompts,
    Unconditional,
    null_condition,
)
from ptq_diffusion.engine.factory import construct, plain
from ptq_diffusion.engine.memory.lending import lend_by_block
from ptq_diffusion.engine.models import build_model, of_folder
from ptq_diffusion.engine.runtime import BY_BLOCK, Runtime
from ptq_diffusion.model import Decoder, Denoiser, Guided
from ptq_diffusion.model.decoder import load_decoder
from ptq_diffusion.model.own import decoder_of
from ptq_diffusion.network import InputObservations, QuantizedDenoiser, load_quantized
from ptq_diffusion.quantizer import StepGroups
from ptq_diffusion.sampler import Table

Part = TypeVar("Part")
Model = TypeVar("Model", bound=Denoiser)
CPU = torch.device("cpu")
DRAWING = ("decoder", "simulated", "quantized")
"""Parts that are built to draw images."""
PROMPTS = "prompts"
"""The name of the artefact of encoded prompts."""


class Workshop:
    """Models and tables of one process and device, built when they are first asked for and shared from then on.

    No stage changes a shared object. A workshop is pickled without what it has built, so that each process of several
    devices builds its own.

    Args:
        runtime: how to run.
        device: where networks are; by default the first of the runtime's devices.
        plugins: packages whose classes an artefact may name, as a quantized network of the user's own does.
    """

    def __init__(self, runtime: Runtime, device: torch.device | None = None, plugins: Sequence[str] = ()) -> None:
        self.runtime, self.device, self.plugins = runtime, device or runtime.device, tuple(plugins)
        self._built: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type["Workshop"], tuple[Runtime, torch.device, tuple[str, ...]]]:
        return Workshop, (self.runtime, self.device, self.plugins)

    def on(self, device: torch.device) -> "Workshop":
        """The workshop of the same process for a device: this one, or one that builds anew for another device."""
        if device == self.device:
            return self
        return self._once(lambda: Workshop(self.runtime, device, self.plugins), "workshop", str(device))

    @property
    def host(self) -> "Workshop":
        """The workshop for the CPU, where ranges are searched and integers made, whatever networks run on."""
        return self.on(CPU)

    def model(self, cfg: DictConfig) -> Denoiser:
        """The float model that `cfg.model` names, without guidance."""
        model: Denoiser = self._once(lambda: self._built_model(cfg), "model", plain(cfg.model))
        # Lightning leaves a model on the CPU.
        return model.to(self.device)

    def guided(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> Denoiser:
        """The float model that `cfg.model` names, guided as `cfg.condition` says.

        Args:
            cfg: the configuration.
            inputs: artefacts by name, of which encoded prompts are read where the condition is prompts.

        Raises:
            ValueError: the network knows no null condition to guide away from.
        """
        model, guidance = self.model(cfg), cfg.condition.guidance
        if guidance.scale == 1:
            return model
        null, (low, high) = null_condition(model, self.conditions(cfg, model, inputs)), guidance.interval
        parts = plain(cfg.model), plain(cfg.condition), str(inputs.get(PROMPTS))
        guided: Denoiser = self._once(lambda: Guided(model, null, guidance.scale, (low, high)), "guided", *parts)
        return guided.to(self.device)

    def conditions(self, cfg: DictConfig, model: Denoiser, inputs: Mapping[str, Path]) -> ConditionSource:
        """The conditions that `cfg.condition` names, for a model, float or quantized; `inputs` as for `guided`.

        Raises:
            ValueError: labels that the network does not know.
        """
        condition = cfg.condition
        if condition.source is None:
            return Unconditional()
        prompts = inputs.get(PROMPTS)

        def build() -> ConditionSource:
            source, embedded = construct(condition.source), condition.guidance.embedded
            if isinstance(source, Labels):
                return DrawnLabels.of_network(source, model.classes, embedded)
            assert prompts is not None, "a stage of a model with prompts needs them"
            return EncodedPrompts.load(prompts, embedded)

        source: ConditionSource = self._once(build, "conditions", plain(condition), model.classes, str(prompts))
        return source

    def decoder(self, cfg: DictConfig) -> Decoder:
        """The decoder of the model that `cfg.model` names, which turns latents into images."""
        if not of_folder(cfg):
            return decoder_of(self.model(cfg)).to(self.device)
        path = cfg.model.path
        decoder: Decoder = self._once(lambda: load_decoder(path), "decoder", path)
        return decoder.to(self.device)

    def table(self, cfg: DictConfig, model: Denoiser) -> Table:
        """The table of the sampler that `cfg.sampler` names, for a model, float or quantized.

        Raises:
            ValueError: the table has a time that the model cannot be told, or reads a variance that it does not say.
        """
        scheduler = dict(model.scheduler_config)
        table: Table = self._once(
            lambda: construct(cfg.sampler).table(scheduler), "table", plain(cfg.sampler), scheduler
        )
        if not model.accepts_time_zero and (last := min(step.t for step in table)) <= 0:
            raise ValueError(
                f"expected times above 0, of which the network's Fourier embedding takes the logarithm, got t = "
                f"{last:g}; set +sampler.scheduler.timestep_spacing=trailing"
            )
        if not model.predicts_variance and any(step.is_learned for step in table):
            raise ValueError(
                "expected a network that says a variance in a second half of its output's channels, which "
                "variance_type=learned_range reads, got one of its state's channels; set "
                "+sampler.scheduler.variance_type=fixed_small"
            )
        return table

    def observations(
        self, cfg: DictConfig, model: Denoiser, groups: StepGroups | None = None, steps: int = 1
    ) -> InputObservations:
        """Observations of the inputs of every site, for quantizers of the kind that `cfg.quantizer` names.

        They are new each time, for their owner to fill or to restore, which brings the groups of steps too.

        Args:
            cfg: the configuration.
            model: the float model.
            groups: of steps.
            steps: of the table.
        """
        # Calibration observes softmax outputs as all other operands, whatever quantizes them.
        softmax = construct(node) if (node := cfg.quantizer.get("softmax")) else None
        return InputObservations(model.sites(), construct(cfg.quantizer.activation), groups, steps, softmax)

    def simulated(self, folder: Path) -> QuantizedDenoiser:
        """The quantized network of an artefact of the stage `quantize`, in simulation; the float model is not needed.

        One of the user's own is built as its configuration says before its weights are replaced.
        """
        build = partial(build_model, plugins=self.plugins)
        simulated: QuantizedDenoiser = self._once(
            lambda: self._placed(load_quantized(folder, build)), "simulated", str(folder)
        )
        return simulated.to(self.device)

    def quantized(self, cfg: DictConfig, folder: Path) -> QuantizedDenoiser:
        """The same network, computed by the backend of `cfg.backend`.

        Raises:
            ValueError: the backend cannot compute a layer.
            RuntimeError: it lacks an operator on this machine.
        """
        return self._once(
            lambda: self.simulated(folder).computed_by(construct(cfg.backend)),
            "quantized",
            str(folder),
            plain(cfg.backend),
        )

    def release_drawing(self) -> None:
        """Forget the decoder and quantized networks once all images are drawn; who asks for one has it built anew."""
        self._built = {key: part for key, part in self._built.items() if json.loads(key)[0] not in DRAWING}
        for part in self._built.values():
            if isinstance(part, Workshop):
                part.release_drawing()

    def _built_model(self, cfg: DictConfig) -> Denoiser:
        # Weights that are lent need not be in memory before.
        mapped = {"mapped": True} if self.runtime.offload == BY_BLOCK and of_folder(cfg) else {}
        return self._placed(construct(cfg.model, **mapped))

    def _placed(self, denoiser: Model) -> Model:
        """The denoiser, whose blocks are lent to the device where the runtime wants it."""
        if self.runtime.offload == BY_BLOCK:
            lend_by_block(denoiser)
        return denoiser

    def _once(self, build: Callable[[], Part], *parts: object) -> Part:
        """The object that `build` returns and that depends on nothing but these parts of a configuration."""
        key = json.dumps(parts, default=str)
        if key not in self._built:
            self._built[key] = build()
        part: Part = self._built[key]
        return part
