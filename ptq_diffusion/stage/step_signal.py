"""Stage: signal and quantization noise of the output at every step, for every offer of a bitwidth policy."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, read_chunks, run_chunks
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import QuantizedDenoiser, quantize
from ptq_diffusion.sampler import Table, sample
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.fit_setting import with_own_guidance
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.planning.offer import with_offer_and_roles
from ptq_diffusion.stage.prompts import EncodePrompts


class MeasurePowers(ChunkWork):
    """Replays float sampling, asks the network of an offer at every state, and sums powers.

    Args:
        network: whose inner layers have the bits of the offer.
        table: the sampler's table.
        outputs: the outputs of the float network.
        conditions: of the samples.
    """

    def __init__(
        self,
        network: QuantizedDenoiser,
        table: Table,
        outputs: FloatOutputs,
        conditions: ConditionSource,
    ) -> None:
        super().__init__()
        self.network, self.table = network, table
        self.outputs, self.conditions = outputs, conditions

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        noise, condition = chunk.noise(self.network.shape), chunk.condition(self.conditions, device)
        walk = sample(lambda _, step: self.outputs.of(chunk, step).to(device), self.table, noise, device=device)
        signal, error = torch.zeros(2, len(self.table), dtype=torch.float64)
        for visit in walk:
            m = visit.m[: chunk.count].cpu().double()
            q = self.network.predict(visit.x_t, visit.step, condition).m[: chunk.count].cpu().double()
            signal[visit.step.i], error[visit.step.i] = m.square().sum(), (q - m).square().sum()
        return {"signal": signal, "error": error}


class MeasureStepSignal(ModelStage):
    """`step_signal.safetensors`: a `StepSignal` of the offers of the bitwidth policy, summed over all images.

    Its networks are rounded to nearest and have searched scales of activations, whatever the rounding and the rule for
    these scales: each offer would need integers and scales of its own, which are chosen once the plan is known.
    """

    name = "step_signal"
    version = 2
    needs = (Calibrate, FloatPath, EncodePrompts)
    uses = ("model", "condition", "sampler", "quantizer", "bitwidth", "noise", "micro_batch")
    unread = ("quantizer.embedding",)
    file = "step_signal.safetensors"

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With the offer of the policy in its place and no guidance of its own: see `planning.offer`, `fit_setting`."""
        return with_offer_and_roles(with_own_guidance(cfg))

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        policy, model = construct(cfg.bitwidth), shop.guided(cfg, inputs)
        assert isinstance(policy, BitwidthPolicy)
        powers = []
        (out / "chunks").mkdir(exist_ok=True)
        # One offer after the other, as each has a network of its own.
        for bits in policy.offered:
            name = f"W{bits.weight}A{bits.activation}"
            work = partial(self.work, cfg, inputs, bits)
            run_chunks(work, noise_chunks(cfg), out / "chunks" / name, shop, f"{self.title} of {name}")
            parts = list(read_chunks(out / "chunks" / name))
            powers.append([torch.stack([part[kind] for part in parts]).sum(0) for kind in ("signal", "error")])
        signal, error = map(torch.stack, zip(*powers, strict=True))
        # Both are sums over the same numbers of images and pixels, whose count their ratio does not need.
        table = shop.table(cfg, model)
        StepSignal(policy.offered, signal, error, model.fingerprint(), table.fingerprint()).save(out / self.file)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], bits: LayerBits, shop: Workshop) -> MeasurePowers:
        """The work of every device, of one offer."""
        model, policy = shop.guided(cfg, inputs), construct(cfg.bitwidth)
        observations = read_observations(cfg, inputs[Calibrate.name], shop.host)
        architecture, weight = model.architecture(), construct(cfg.quantizer.weight)
        plan = policy.uniform(architecture, bits)
        host_model, rank = shop.host.guided(cfg, inputs), construct(cfg.quantizer.low_rank).rank
        network = quantize(host_model, plan, observations, weight, rank=rank)
        outputs, conditions = FloatOutputs(inputs[FloatPath.name]), shop.conditions(cfg, model, inputs)
        return MeasurePowers(network, shop.table(cfg, model), outputs, conditions)
