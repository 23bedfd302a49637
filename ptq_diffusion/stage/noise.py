"""Stage: the moments of the quantization noise along float sampling."""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.correction import Fingerprint, NoiseStatistics
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, read_chunks, run_chunks
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.sampler import Step, Table, Visit, sample
from ptq_diffusion.stage.fit_setting import fit_network, fit_table, with_own_guidance
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize


class MeasureNoise(ChunkWork):
    """Replays float sampling and asks the quantized network at every state; only moments are kept.

    Args:
        quantized: the network.
        steps: the table.
        m: the float output of a chunk at a step.
        conditions: of the samples.
    """

    def __init__(
        self,
        quantized: QuantizedDenoiser,
        steps: Table,
        m: Callable[[Chunk, Step], Tensor],
        conditions: ConditionSource,
    ) -> None:
        super().__init__()
        self.quantized, self.steps, self.m, self.conditions = quantized, steps, m, conditions
        self.owner = noise_fingerprint(quantized, steps)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        noise, condition = chunk.noise(self.quantized.shape), chunk.condition(self.conditions, device)
        walk = sample(lambda _, s: self.m(chunk, s).to(device), self.steps, noise, device=device)

        def rows(tensor: Tensor) -> Tensor:
            """Without padding, where moments are taken: they are float64, which not every device has."""
            return tensor[: chunk.count].cpu()

        def q(visit: Visit) -> Tensor:
            return self.quantized.predict(visit.x_t, visit.step, condition).m

        observations = ((rows(visit.m), rows(q(visit)), rows(visit.x_t)) for visit in walk)
        return NoiseStatistics.of(self.owner, observations, chunk.first).tensors()


class Noise(ModelStage):
    """`noise.safetensors`: a `NoiseStatistics` merged in the order of samples."""

    name = "noise"
    version = 1
    needs = (Quantize, FloatPath, EncodePrompts)
    uses = ("model", "condition", "sampler", "noise", "micro_batch", "backend")

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With no guidance of its own where it is that of the images: see `with_own_guidance`."""
        return with_own_guidance(cfg)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        run_chunks(partial(self.work, cfg, inputs), noise_chunks(cfg), out / "chunks", shop, self.title)
        owner = self.work(cfg, inputs, shop).owner
        parts = (NoiseStatistics.of_tensors(owner, chunk) for chunk in read_chunks(out / "chunks"))
        reduce(NoiseStatistics.merge, parts).save(out / "noise.safetensors")

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> MeasureNoise:
        """The work of every device."""
        model = shop.model(cfg)
        quantized = fit_network(shop.quantized(cfg, inputs[Quantize.name]), cfg, inputs, shop)
        m, conditions = FloatOutputs(inputs[FloatPath.name]).of, shop.conditions(cfg, quantized, inputs)
        return MeasureNoise(quantized, fit_table(cfg, model, shop), m, conditions)


def noise_fingerprint(quantized: QuantizedDenoiser, steps: Table) -> Fingerprint:
    """The owner of statistics of this network on this table; a plan is part of its network.

    Raises:
        ValueError: the network's plan is of a table with another number of steps.
    """
    quantized.plan.require(quantized.sites(), len(steps))
    return Fingerprint(quantized.fingerprint(), steps.fingerprint(), quantized.shape)
