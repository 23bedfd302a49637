"""Stage: the integers of weights that a rounding chooses, part by part of the network."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import quantize
from ptq_diffusion.rounding import (
    BRECQ,
    BlockReconstruction,
    LayerReconstruction,
    LayerRounding,
    Reads,
    Rounding,
    WeightReconstruction,
)
from ptq_diffusion.rounding.artefact import read_part, save_integers, write_integers
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.subject import CALLS, PARTS, go_through, reads_of, subject_of
from ptq_diffusion.stage.trajectories import Trajectories

READERS: Mapping[Reads, type[Rounding]] = {Reads.INPUTS: LayerRounding, Reads.CALLS: BRECQ}
"""The classes of roundings that each evidence is collected for."""


def require_reconstructable(rounding: Rounding) -> None:
    """Refuse a rounding that reads nothing, or what is collected for roundings of another class alone.

    Raises:
        ValueError: the message says what it is to be.
    """
    kind = READERS.get(rounding.reads)
    if kind is None:
        raise ValueError(
            f"expected a rounding that reads a network's inputs, got a {type(rounding).__name__}, for which nothing is "
            "to be reconstructed; set rounding=gptq or another goal"
        )
    if not isinstance(rounding, kind):
        raise ValueError(
            f"expected a rounding that reads {rounding.reads.value} to be a {kind.__name__}, got a "
            f"{type(rounding).__name__}; derive it from that class"
        )


class Reconstruct(ModelStage):
    """`integers.safetensors`: the integers of every quantized weight, and `owner.json`, the network and its plan."""

    name = "reconstruct"
    version = 1
    needs = (Trajectories, ChooseStates, Calibrate, Plan, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", "quantizer", "rounding")
    unread = ("quantizer.embedding",)
    scratch = (PARTS, CALLS)

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether weights are rounded otherwise than to nearest."""
        return reads_of(cfg) is not Reads.NOTHING

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        work = self.work(cfg, inputs, out, shop)
        files = go_through(
            work.parts,
            out,
            (self.title, shop.runtime.progress),
            lambda part, file: write_integers(file, work.rounded(part)),
            lambda part, file: work.install(read_part(file, work.copies(part))),
        )
        parts = (read_part(file, work.copies(part)) for part, file in files.items())
        save_integers(out, parts, work.model.fingerprint(), work.quantized.plan.fingerprint())

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> WeightReconstruction:
        """The network that is rounded, with all that its rounding reads."""
        plan, observations = read_plan(inputs[Plan.name]), read_observations(cfg, inputs[Calibrate.name], shop.host)
        nearest = quantize(shop.host.guided(cfg, inputs), plan, observations, construct(cfg.quantizer.weight))
        subject, rounding = subject_of(cfg, inputs, nearest.to(shop.device), shop), construct(cfg.rounding)
        require_reconstructable(rounding)
        if rounding.reads is Reads.CALLS:
            return BlockReconstruction(subject, rounding, out / CALLS)
        return LayerReconstruction(subject, rounding)
