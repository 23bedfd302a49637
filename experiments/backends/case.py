"""The networks whose forwards are timed, float and quantized, each with what it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.chunks import Chunk, chunks
from ptq_diffusion.engine.conditions import ConditionSource, Unconditional
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition, Denoiser, DiffusersDenoiser
from ptq_diffusion.model.family import FAMILIES
from ptq_diffusion.network import QuantizedDenoiser, quantize
from ptq_diffusion.sampler import Step, Table, sample

BUNDLED = ("cifar10_ddpm", "cifar10_ldm", "cifar10_dit")
"""Bundled models, trained."""
RANDOM: Mapping[str, Mapping[str, Any]] = {
    "unet_30m": {
        "sample_size": 32,
        "block_out_channels": (16, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    },
    "unet_3g": {
        "sample_size": 32,
        "block_out_channels": (128, 192, 192),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 32,
        "attention_head_dim": 64,
    },
}
"""UNets of random weights, of about 30 million and 3 billion multiply-accumulates."""
NAMES = (*BUNDLED, *RANDOM)
STEPS = 20
"""Steps of the sampler that ranges are calibrated on."""
CALIBRATION = 2
"""Images of calibration: speed does not depend on how good ranges are."""


@dataclass(frozen=True)
class Case:
    """A network, its quantized copy, and one forward of either.

    Args:
        name: of the network.
        model: float, in eager mode.
        quantized: the copy, simulated; other backends are made of it.
        table: of the sampler.
        conditions: of samples.
        x_t: states, (B, C, H, W).
        step: the row of the table that they are at.
        condition: of the B samples; None of an unconditional network.
    """

    name: str
    model: Denoiser
    quantized: QuantizedDenoiser
    table: Table
    conditions: ConditionSource
    x_t: Tensor
    step: Step
    condition: Condition | None

    def of_batch(self, size: int) -> "Case":
        """The same networks, asked about another number of samples."""
        chunk = chunks("images", [0], size, size)[0]
        x_t, condition = chunk.noise(self.model.shape).draw(), chunk.condition(self.conditions)
        return replace(self, x_t=x_t, condition=condition)


def case(name: str, batch: int, bitwidth: str = "w8a8") -> Case:
    """A case by its name.

    Args:
        name: one of `NAMES`.
        batch: number of samples.
        bitwidth: a name of the group of this name.
    """
    shop = Workshop(Runtime("cpu", progress=False))
    cfg = _configuration(f"model={name if name in BUNDLED else BUNDLED[0]}", f"bitwidth={bitwidth}")
    model = shop.model(cfg) if name in BUNDLED else random_unet(name)
    conditions = shop.conditions(cfg, model, {}) if name in BUNDLED else Unconditional()
    table = construct(cfg.sampler).table(model.scheduler_config)
    with torch.inference_mode():
        quantized = _calibrated(cfg, model, table, conditions)
    empty = Case(name, model, quantized, table, conditions, torch.empty(0), table[STEPS // 2], None)
    return empty.of_batch(batch)


def random_unet(name: str) -> DiffusersDenoiser:
    """A UNet of `RANDOM` with the weights that its class begins with, and the schedule that DDPM's begins with."""
    torch.manual_seed(0)
    network = UNet2DModel(in_channels=3, out_channels=3, **RANDOM[name]).eval().requires_grad_(False)
    scheduler = dict(DDPMScheduler().config)
    return DiffusersDenoiser(network, FAMILIES["UNet2DModel"], dict(network.config), scheduler)


def _configuration(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*words, f"sampler.steps={STEPS}"])


def _calibrated(cfg: DictConfig, model: Denoiser, table: Table, conditions: ConditionSource) -> QuantizedDenoiser:
    """The quantized copy, with the ranges of a few float trajectories."""
    observations = Workshop(Runtime("cpu", progress=False)).observations(cfg, model)
    chunk: Chunk = chunks("calibration", [0], CALIBRATION, CALIBRATION)[0]
    condition = chunk.condition(conditions)
    with observations.observing(model.network):
        for _ in sample(lambda x, step: model.predict(x, step, condition).m, table, chunk.noise(model.shape)):
            pass
    plan = construct(cfg.bitwidth).plan(model.architecture(), table, None)
    return quantize(model, plan, observations, construct(cfg.quantizer.weight))
