"""Stage: the scales of activations that are learned once weights are rounded, part by part of the network."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.rounding import LSQ, ActivationScales, ScaleReconstruction
from ptq_diffusion.rounding.artefact import read_scales, save_scales, write_scales
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.plan import Plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.network import rounded_network
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct
from ptq_diffusion.stage.rounding.subject import CALLS, PARTS, make_in_order, subject_of
from ptq_diffusion.stage.trajectories import Trajectories


def require_learnable(rule: ActivationScales) -> None:
    """Refuse a rule that learns nothing, or that learns otherwise than this stage does.

    Raises:
        ValueError: the message says what it is to be.
    """
    if not isinstance(rule, LSQ):
        raise ValueError(
            f"expected a rule that learns activation scales, got a {type(rule).__name__}, for which nothing is to be "
            "learned; set activation_scales=lsq or another goal"
        )


class LearnScales(ModelStage):
    """`scales.safetensors`: scales of activations by step, and `owner.json`, the network and its plan."""

    name = "activation_scales"
    version = 1
    needs = (Trajectories, ChooseStates, Calibrate, Plan, Reconstruct, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", "quantizer", "activation_scales")
    scratch = (PARTS, CALLS)

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether scales are learned."""
        return bool(construct(cfg.activation_scales).learns)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        rule = construct(cfg.activation_scales)
        require_learnable(rule)
        quantized, observations = rounded_network(cfg, inputs, shop)
        subject = subject_of(cfg, inputs, quantized.to(shop.device), shop)
        work = ScaleReconstruction(subject, rule, observations.groups, out / CALLS)
        files = make_in_order(
            work.parts,
            out,
            (self.title, shop.runtime.progress),
            lambda part, file: write_scales(file, work.learned(part)),
            lambda part, file: work.install(read_scales(file, work.shapes(part))),
        )
        parts = (read_scales(file, work.shapes(part)) for part, file in files.items())
        save_scales(out, parts, work.model.fingerprint(), work.quantized.plan.fingerprint())
