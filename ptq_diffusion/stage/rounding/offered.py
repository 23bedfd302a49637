"""Stage: the integers that weights would have at every bitwidth that a budget offers, for sensitivities."""

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
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import quantize
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.rounding import LayerReconstruction, Reads
from ptq_diffusion.rounding.artefact import read_integers, save_integers
from ptq_diffusion.rounding.one_pass import one_pass
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.planning.offer import with_offer
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.sharing import is_missing, make_shared
from ptq_diffusion.stage.rounding.subject import PARTS, make_in_order, reads_of, subject_of
from ptq_diffusion.stage.trajectories import Trajectories


class RoundOffers(ModelStage):
    """`integers.safetensors`: the integers of every weight at every bitwidth offered, and `owner.json`.

    The moments of a layer's inputs are taken once for all bitwidths, on the grids of inputs with the most bits; the
    integers are those of `one_pass`.
    """

    name = "offers"
    version = 1
    needs = (Trajectories, ChooseStates, Calibrate, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", "quantizer", "rounding", "bitwidth")
    unread = ("quantizer.embedding",)
    scratch = (PARTS,)

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether a policy chooses between bitwidths of weights that are rounded otherwise than to nearest."""
        return len(cfg.bitwidth.get("weights", ())) > 1 and reads_of(cfg) is not Reads.NOTHING

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With the offer of the policy in its place: see `with_offer`."""
        return with_offer(cfg)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        tasks = len(shop.host.model(cfg).sites())
        build = partial(self.work, cfg, inputs)
        follower = partial(round_offers, build=build, cfg=cfg, out=out, shop=shop, threads=torch.get_num_threads())
        shop.runtime.launch(follower, tasks)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> LayerReconstruction:
        """The network at the first of the bitwidths, with all that its rounding reads."""
        model, policy = shop.host.guided(cfg, inputs), construct(cfg.bitwidth)
        observations = read_observations(cfg, inputs[Calibrate.name], shop.host)
        first = policy.uniform(model.architecture(), LayerBits(policy.weights[0], policy.activations[-1]))
        nearest = quantize(model, first, observations, construct(cfg.quantizer.weight))
        subject = subject_of(cfg, inputs, nearest.to(shop.device), shop)
        return LayerReconstruction(subject, one_pass(construct(cfg.rounding)))


def round_offers(
    fabric: Fabric,
    build: Callable[[Workshop], LayerReconstruction],
    cfg: DictConfig,
    out: Path,
    shop: Workshop,
    threads: int,
) -> None:
    """Round part by part, together with all other devices; the first of them saves.

    Args:
        fabric: of this device.
        build: makes the network that is rounded with a workshop.
        cfg: of the stage.
        out: the folder of the artefact.
        shop: of this process.
        threads: of torch in every process, on which last bits depend.
    """
    torch.set_num_threads(threads)
    with synchronised(fabric):
        work, weights = build(shop.on(fabric.device)), construct(cfg.bitwidth).weights
    files = make_in_order(
        work.parts,
        out,
        (RoundOffers().title, shop.runtime.progress and fabric.is_global_zero),
        partial(make_shared, fabric, work, lambda part: offered(work, part, weights)),
        lambda _, __: None,
        partial(is_missing, fabric),
    )
    if fabric.is_global_zero:
        owner = work.model.fingerprint(), work.quantized.plan.fingerprint()
        save_integers(out, map(read_integers, files.values()), *owner)


def offered(work: LayerReconstruction, part: Part, weights: tuple[int, ...]) -> Integers:
    """The integers of a part at every bitwidth offered, from one pass over the states.

    Args:
        work: whose plan gives free layers the first of the bitwidths.
        part: of it.
        weights: the bitwidths.
    """
    integers = {}
    for (name, first), moments in work.moments(part).items():
        for bits in weights if first == weights[0] else (first,):
            quantizer = work.quantizer(name, bits)
            integers[name, bits] = work.rounding.integers(work.float_weight(name), quantizer, moments)
    return integers
