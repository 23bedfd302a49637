"""Stage: the integers of weights that a rounding chooses, part by part of the network."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from lightning import Fabric
from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.synchronisation import synchronised
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
from ptq_diffusion.rounding.artefact import read_part, save_integers
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.sharing import is_missing, make_shared
from ptq_diffusion.stage.rounding.subject import CALLS, PARTS, make_in_order, reads_of, subject_of
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
        # Layers are independent of each other, and the iterations of a block are one after the other.
        tasks = len(read_plan(inputs[Plan.name]).sites) if reads_of(cfg) is Reads.INPUTS else 1
        build = partial(self.work, cfg, inputs, out)
        follower = partial(reconstruct, build=build, out=out, shop=shop, threads=torch.get_num_threads())
        shop.runtime.launch(follower, tasks)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> WeightReconstruction:
        """The network that is rounded, with all that its rounding reads."""
        plan, observations = read_plan(inputs[Plan.name]), read_observations(cfg, inputs[Calibrate.name], shop.host)
        nearest = quantize(shop.host.guided(cfg, inputs), plan, observations, construct(cfg.quantizer.weight))
        subject, rounding = subject_of(cfg, inputs, nearest.to(shop.device), shop), construct(cfg.rounding)
        require_reconstructable(rounding)
        if rounding.reads is Reads.CALLS:
            return BlockReconstruction(subject, rounding, out / CALLS)
        return LayerReconstruction(subject, rounding)


def reconstruct(
    fabric: Fabric, build: Callable[[Workshop], WeightReconstruction], out: Path, shop: Workshop, threads: int
) -> None:
    """Round part by part, together with all other devices; the first of them saves.

    Args:
        fabric: of this device.
        build: makes the network that is rounded with a workshop.
        out: the folder of the artefact.
        shop: of this process.
        threads: of torch in every process, on which last bits depend.
    """
    torch.set_num_threads(threads)
    with synchronised(fabric):
        work = build(shop.on(fabric.device))

    def install(part: Part, file: Path) -> None:
        with synchronised(fabric):
            work.install(read_part(file, work.copies(part)))

    files = make_in_order(
        work.parts,
        out,
        (Reconstruct().title, shop.runtime.progress and fabric.is_global_zero),
        partial(make_shared, fabric, work, work.rounded),
        install,
        partial(is_missing, fabric),
    )
    if fabric.is_global_zero:
        parts = (read_part(file, work.copies(part)) for part, file in files.items())
        save_integers(out, parts, work.model.fingerprint(), work.quantized.plan.fingerprint())
