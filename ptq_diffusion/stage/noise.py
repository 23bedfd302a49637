"""Stage: the moments of the quantization noise along float sampling."""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.correction import Fingerprint, NoiseStatistics
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network.quantizers import network_fingerprint
from ptq_diffusion.sampler import Step, sample
from ptq_diffusion.sampler.step import fingerprint
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.chunks import Chunk, ChunkWork, chunks, read_chunks, run_chunks
from ptq_diffusion.stage.fit_table import build_fit_steps
from ptq_diffusion.stage.parts import build_model, build_quantized
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import ModelStage


class MeasureNoise(ChunkWork):
    """Float sampling; at every state the quantized network is asked too, and only moments are kept."""

    def __init__(self, model: Denoiser, quantized: Denoiser, steps: Sequence[Step]) -> None:
        super().__init__()
        self.model, self.quantized, self.steps = model, quantized, steps
        self.owner = noise_fingerprint(quantized, steps)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        walk = sample(lambda x, s: self.model.predict(x, s.t), self.steps, chunk.noise(self.model.shape), device=device)

        def kept(tensor: Tensor) -> Tensor:
            """Without padding, where moments are taken: they are float64, which not every device has."""
            return tensor[: chunk.count].cpu()

        seen = ((kept(v.m), kept(self.quantized.predict(v.x_t, v.step.t)), kept(v.x_t)) for v in walk)
        return NoiseStatistics.of(self.owner, seen, chunk.first).tensors()


class Noise(ModelStage):
    """`noise.safetensors`: a `NoiseStatistics` merged in the order of samples."""

    name = "noise"
    version = 1
    needs = (Calibrate,)
    uses = ("model", "sampler", "quantizer", "bitwidth", "noise", "micro_batch")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:
        wanted = chunks("noise", [cfg.noise.seed], cfg.noise.images, cfg.micro_batch)
        run_chunks(partial(self.work, cfg, inputs), wanted, out / "chunks", runtime, "quantization noise")
        owner = self.work(cfg, inputs).owner
        parts = (NoiseStatistics.of_tensors(owner, chunk) for chunk in read_chunks(out / "chunks"))
        reduce(NoiseStatistics.merge, parts).save(out / "noise.safetensors")

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> MeasureNoise:
        """What is done on every device."""
        model = build_model(cfg)
        quantized = build_quantized(cfg, model, inputs[Calibrate.name])
        return MeasureNoise(model, quantized, build_fit_steps(cfg, model))


def noise_fingerprint(quantized: Denoiser, steps: Sequence[Step]) -> Fingerprint:
    """What statistics of this network on this table belong to."""
    return Fingerprint(network_fingerprint(quantized.network), fingerprint(steps), quantized.shape)
