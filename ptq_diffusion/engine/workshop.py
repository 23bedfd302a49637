"""Objects that several stages build from their configuration in the same way, each built once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct, plain
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.model.denoiser import Denoiser
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.network import NetworkQuantizers, quantize
from ptq_diffusion.sampler import Step

Made = TypeVar("Made")


class Workshop:
    """Models and tables of one process, built when they are first asked for and shared from then on.

    Nobody changes what he is given. A workshop is pickled without what it has built, so that each process of several
    devices builds its own.

    Args:
        runtime: how to run.
        device: where networks are; by default the first of the runtime's devices.
    """

    def __init__(self, runtime: Runtime, device: torch.device | None = None) -> None:
        self.runtime, self.device = runtime, device or runtime.device
        self._made: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type["Workshop"], tuple[Runtime, torch.device]]:
        return Workshop, (self.runtime, self.device)

    def on(self, device: torch.device) -> "Workshop":
        """The workshop of a device: this one, or an empty one for another device."""
        return self if device == self.device else Workshop(self.runtime, device)

    def model(self, cfg: DictConfig) -> Denoiser:
        """The float model that `cfg.model` names."""
        model: Denoiser = self._once("model", [cfg.model], lambda: construct(cfg.model))
        return model.to(self.device)

    def table(self, cfg: DictConfig) -> Sequence[Step]:
        """The table of the sampler that `cfg.sampler` names, for the model."""
        return self._once(
            "table",
            [cfg.model, cfg.sampler],
            lambda: construct(cfg.sampler).steps(self.model(cfg).scheduler_config),
        )

    def plan(self, cfg: DictConfig) -> BitwidthPlan:
        """The bits that the policy `cfg.bitwidth` gives every site of the model."""
        return self._once(
            "plan", [cfg.model, cfg.bitwidth], lambda: construct(cfg.bitwidth).plan(self.model(cfg).sites())
        )

    def quantizers(self, cfg: DictConfig) -> NetworkQuantizers:
        """Fresh quantizers for every site that the plan gives fewer than float bits; they are to be changed."""
        weight, activation = construct(cfg.quantizer.weight), construct(cfg.quantizer.activation)
        return NetworkQuantizers(self.model(cfg).sites(), self.plan(cfg), weight, activation)

    def calibrated(self, cfg: DictConfig, calibration: Path) -> NetworkQuantizers:
        """Frozen quantizers with the ranges of a calibration artefact, on the CPU; they are a caller's own."""
        quantizers = self.quantizers(cfg)
        quantizers.restore(calibration / "quantizers.safetensors")
        return quantizers

    def quantized(self, cfg: DictConfig, calibration: Path) -> Denoiser:
        """The model around a quantized copy of its network, with the ranges of a calibration artefact."""

        def build() -> Denoiser:
            model = self.model(cfg).cpu()
            return model.with_network(quantize(model.network, self.calibrated(cfg, calibration)))

        made = self._once("quantized", [cfg.model, cfg.quantizer, cfg.bitwidth, str(calibration)], build)
        self.model(cfg)
        return made.to(self.device)

    def _once(self, kind: str, parts: Sequence[object], build: Callable[[], Made]) -> Made:
        """What `build` returns, which depends on these parts of the configuration only."""
        key = json.dumps([kind, *(plain(part) if isinstance(part, DictConfig) else part for part in parts)])
        if key not in self._made:
            self._made[key] = build()
        found: Made = self._made[key]
        return found
