"""The forecast of an experiment: one line for each artefact, in the order in which they would be made."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from omegaconf import DictConfig

from ptq_diffusion.bitwidth.cost import NOTHING_OUTSIDE_PLAN, PlanCost, plan_cost
from ptq_diffusion.command.plan.bits import FLOAT, plans
from ptq_diffusion.command.plan.case import Case, OutlineShop
from ptq_diffusion.command.plan.memory import Footprint, Memory, resident
from ptq_diffusion.command.plan.work import Work, work_of
from ptq_diffusion.engine.signature import options_read
from ptq_diffusion.engine.stage import Need, Stage
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.decoder import Pixels
from ptq_diffusion.model.macs import count_macs
from ptq_diffusion.report.stages import goal_stages

STARTED = 112 * 2**20
"""Bytes of a run that a plan has not: signatures, kernels of a first forward, the heap's gaps. It is what was left of a
measured peak, 3 % of it added, see experiments/plan: about 34 MiB of it are there before the first stage."""


@dataclass(frozen=True)
class Line:
    """One artefact.

    Args:
        title: its stage, and its role where a stage has several.
        work: passes and bytes.
        memory: while it is made.
    """

    title: str
    work: Work
    memory: Memory


@dataclass(frozen=True)
class Forecast:
    """The forecast of an experiment.

    Args:
        model: the option that names the model.
        architecture: of the network, over the sampler's table.
        costs: of one image, by the name of the bitwidth plan, full precision first.
        lines: the artefacts.
        process: bytes that the process has before it loads a network.
        decoder_macs: multiply-accumulates of decoding one image; 0 of pixels.
        untold: artefacts whose work and memory no rule tells, so that they come on top of all sums.
    """

    model: str
    architecture: Architecture
    costs: Mapping[str, PlanCost]
    lines: Sequence[Line]
    process: int
    decoder_macs: int
    untold: Sequence[str] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one row of a forward."""
        return sum(site.macs for site in self.architecture.sites) + self.architecture.attention_macs

    @property
    def total(self) -> Work:
        """The work of all artefacts."""
        return reduce(Work.__add__, (line.work for line in self.lines), Work())

    @property
    def store(self) -> int:
        """The most bytes of the store at one time: what is kept, and the largest scratch beside it."""
        return self.total.kept + max((line.work.scratch for line in self.lines), default=0)

    @property
    def device_memory(self) -> int:
        """Bytes of networks and activations at the peak."""
        return max((line.memory.device for line in self.lines), default=0)

    @property
    def memory(self) -> int:
        """Bytes of the process at the peak where networks run on the CPU.

        What a stage frees of its data stays with the process, in pieces that the next stage's networks do not fit into.
        """
        data = max((line.memory.data for line in self.lines), default=0)
        return self.process + STARTED + self.device_memory + data


def forecast(cfg: DictConfig, goal: type[Stage], shop: OutlineShop) -> Forecast:
    """The forecast of all that a goal is made of.

    Args:
        cfg: the whole configuration.
        goal: the last stage.
        shop: builds outlines of models.

    Raises:
        ValueError: choices that do not fit each other.
        FileNotFoundError: the model's folder lacks a configuration.
    """
    process, case = resident(), Case(cfg, shop)
    architecture, steps = case.model.architecture(case.table), len(case.table)
    costs = {
        # Full precision has float tables of embeddings too, and nothing else that is outside of a plan.
        name: plan_cost(architecture, plan, steps, NOTHING_OUTSIDE_PLAN if name == FLOAT else case.outside_plan)
        for name, plan in plans(case).items()
    }
    footprint, lines, untold = Footprint(case), list[Line](), list[str]()
    for title, need in artefacts([Need(last, cfg) for last in goal_stages(cfg, goal)]):
        part = Case(need.cfg, shop)
        work = work_of(need.stage.name, part)
        if work is None:
            untold.append(title)
        else:
            lines.append(Line(title, work, footprint.of(need.stage.name, part)))
    return Forecast(
        str(cfg.model.get("path", cfg.labels.model)), architecture, costs, lines, process, _decoder_macs(case), untold
    )


def _decoder_macs(case: Case) -> int:
    decoder = case.shop.decoder(case.cfg)
    if isinstance(decoder, Pixels):
        return 0
    latent = torch.zeros(1, *case.model.shape, device="meta")
    macs = count_macs(decoder, lambda _: decoder.decode(latent), ())
    return sum(macs.layers.values()) + macs.attention


def artefacts(goals: Iterable[Need]) -> Iterator[tuple[str, Need]]:
    """The artefacts that some are made of and themselves, with their titles, each once and before what it serves.

    Two needs are of one artefact where the configuration says the same of their stages, as in signatures; files are
    not read.
    """
    visited: set[str] = set()

    def visit(role: str, need: Need) -> Iterator[tuple[str, Need]]:
        key = json.dumps([need.stage.name, options_read(need.stage, need.cfg)])
        if key not in visited:
            visited.add(key)
            for name, before in need.stage().inputs(need.cfg).items():
                yield from visit(name, before)
            name = need.stage.name
            yield name if role == name else f"{name}: {role}", need

    for goal in goals:
        yield from visit(goal.stage.name, goal)
