"""Stage: signal and quantization noise of the output at every step, for every offer of a bitwidth policy."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, read_chunks, run_chunks
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import QuantizedDenoiser, quantize
from ptq_diffusion.sampler import Table, sample
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.fit_setting import with_own_guidance
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.planning.offer import with_offer_and_roles
from ptq_diffusion.stage.prompts import EncodePrompts


class MeasurePowers(ChunkWork):
    """Replays float sampling, asks the network of every offer at every state, and sums powers.

    Args:
        networks: one for each offer.
        table: the sampler's table.
        outputs: the outputs of the float network.
        conditions: of the samples.
    """

    def __init__(
        self,
        networks: Sequence[QuantizedDenoiser],
        table: Table,
        outputs: FloatOutputs,
        conditions: ConditionSource,
    ) -> None:
        super().__init__()
        self.networks, self.table = nn.ModuleList(networks), table
        self.outputs, self.conditions = outputs, conditions

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        shape = self.networks[0].shape
        assert isinstance(shape, tuple)
        noise, condition = chunk.noise(shape), chunk.condition(self.conditions, device)
        walk = sample(lambda _, step: self.outputs.of(chunk, step).to(device), self.table, noise, device=device)
        signal, error = torch.zeros(2, len(self.networks), len(self.table), dtype=torch.float64)
        for visit in walk:
            m = visit.m[: chunk.count].cpu().double()
            signal[:, visit.step.i] = m.square().sum()
            for offer, network in enumerate(self.networks):
                assert isinstance(network, QuantizedDenoiser)
                q = network.predict(visit.x_t, visit.step, condition).m[: chunk.count].cpu().double()
                error[offer, visit.step.i] = (q - m).square().sum()
        return {"signal": signal, "error": error}


class MeasureStepSignal(ModelStage):
    """`step_signal.safetensors`: a `StepSignal` of the offers of the bitwidth policy, summed over all images."""

    name = "step_signal"
    version = 1
    needs = (Calibrate, FloatPath, EncodePrompts)
    uses = ("model", "condition", "sampler", "quantizer", "bitwidth", "noise", "micro_batch")
    unread = ("quantizer.embedding",)
    file = "step_signal.safetensors"

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With the offer of the policy in its place and no guidance of its own: see `planning.offer`, `fit_setting`."""
        return with_offer_and_roles(with_own_guidance(cfg))

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        run_chunks(partial(self.work, cfg, inputs), noise_chunks(cfg), out / "chunks", shop, self.title)
        parts = list(read_chunks(out / "chunks"))
        signal, error = (torch.stack([part[name] for part in parts]).sum(0) for name in ("signal", "error"))
        policy, model = construct(cfg.bitwidth), shop.guided(cfg, inputs)
        assert isinstance(policy, BitwidthPolicy)
        # Both are sums over the same numbers of images and pixels, whose count their ratio does not need.
        table = shop.table(cfg, model)
        StepSignal(policy.offered, signal, error, model.fingerprint(), table.fingerprint()).save(out / self.file)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> MeasurePowers:
        """The work of every device."""
        model, policy = shop.guided(cfg, inputs), construct(cfg.bitwidth)
        observations = read_observations(cfg, inputs[Calibrate.name], shop.host)
        architecture, weight = model.architecture(), construct(cfg.quantizer.weight)
        plans = [policy.uniform(architecture, bits) for bits in policy.offered]
        host_model, rank = shop.host.guided(cfg, inputs), construct(cfg.quantizer.low_rank).rank
        networks = [quantize(host_model, plan, observations, weight, rank=rank) for plan in plans]
        outputs, conditions = FloatOutputs(inputs[FloatPath.name]), shop.conditions(cfg, model, inputs)
        return MeasurePowers(networks, shop.table(cfg, model), outputs, conditions)
