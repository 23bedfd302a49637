"""The estimate of what a goal needs at least, from its whole configuration."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from ptq_diffusion.command.check.bounds import Drawn, Needs, in_units, needs
from ptq_diffusion.command.check.condition import encoded_size
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.report.stages import goal_stages
from ptq_diffusion.stage.reference import build_extractor


def parts_read(cfg: DictConfig, goal: type[Stage]) -> set[str]:
    """The parts of a configuration that are read by what is made of it, not by all that might be."""
    stages: set[type[Stage]] = set()

    def visit(stage: type[Stage], cfg: DictConfig) -> None:
        if stage not in stages:
            stages.add(stage)
            for need in stage().inputs(cfg).values():
                visit(need.stage, need.cfg)

    for last in goal_stages(cfg, goal):
        visit(last, cfg)
    return {key for stage in stages for key in stage.uses}


def least(cfg: DictConfig, model: Denoiser, steps: int, shop: Workshop, used: Collection[str]) -> Needs:
    """The least that a goal needs which reads these parts of the configuration."""
    drawn = Drawn.of(cfg, used, construct(cfg.correction) if "correction" in used else None)
    features = build_extractor(cfg).num_features if "feature" in used else 0
    return needs(cfg, model, drawn, steps, features, shop.device, encoded_size(cfg, model))


@contextmanager
def memory_named(cfg: DictConfig, shop: Workshop) -> Iterator[None]:
    """Within this context an error of memory that says nothing says how much the experiment needs at least.

    Raises:
        MemoryError: with the estimate.
    """
    try:
        yield
    except MemoryError as error:
        if str(error) or "sampler" not in cfg:
            raise
        model = shop.model(cfg)
        minimum = least(cfg, model, len(shop.table(cfg, model)), shop, [str(key) for key in cfg])
        asked = in_units(max(minimum.memory.size, minimum.device_memory.size))
        raise MemoryError(f"an experiment that asks for {asked} at least and more in passing") from error
