"""An experiment as planning sees it: its networks on the meta device, its table, and its numbers of images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from omegaconf import DictConfig

from ptq_diffusion.bitwidth.cost import CostOutsidePlan
from ptq_diffusion.engine.factory import construct, plain
from ptq_diffusion.engine.models import of_folder
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition, Decoder, Denoiser, DiffusersDenoiser, Guided
from ptq_diffusion.model.decoder import outlined_decoder
from ptq_diffusion.model.own import decoder_of
from ptq_diffusion.sampler import Table
from ptq_diffusion.stage.fit_setting import fit_model, fit_table
from ptq_diffusion.stage.planning.additions import cost_outside_plan

NO_INPUTS: Mapping[str, Path] = MappingProxyType({})


class OutlineShop(Workshop):
    """A workshop whose models are outlines on the meta device, for which a folder needs no weights."""

    def model(self, cfg: DictConfig) -> Denoiser:
        outline: Denoiser = self._once(lambda: _outline(cfg), "model", plain(cfg.model))
        return outline

    def guided(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> Denoiser:  # noqa: ARG002
        """The outline, guided away from a null condition that stands for whatever it will be."""
        model, guidance = self.model(cfg), cfg.condition.guidance
        if guidance.scale == 1:
            return model
        low, high = guidance.interval
        return Guided(model, Condition(labels=torch.zeros(1)), guidance.scale, (low, high))

    def decoder(self, cfg: DictConfig) -> Decoder:
        if not of_folder(cfg):
            return decoder_of(self.model(cfg)).to("meta")
        path = cfg.model.path
        decoder: Decoder = self._once(lambda: outlined_decoder(path), "decoder", path)
        return decoder


@dataclass(frozen=True)
class Case:
    """A configuration with what follows from it alone.

    Args:
        cfg: of the experiment, or of an artefact that it needs.
        shop: builds outlines.
    """

    cfg: DictConfig
    shop: OutlineShop

    @cached_property
    def model(self) -> Denoiser:
        """The guided float model, on the meta device."""
        return self.shop.guided(self.cfg, NO_INPUTS)

    @cached_property
    def table(self) -> Table:
        """The sampler's table."""
        return self.shop.table(self.cfg, self.model)

    @cached_property
    def fit_table(self) -> Table:
        """The table that corrections are fitted on."""
        return fit_table(self.cfg, self.model, self.shop)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return self.shop.decoder(self.cfg).shape(self.model.shape)

    @cached_property
    def equalised(self) -> list[str]:
        """The names of the layers whose input is divided by factors of its channels."""
        return list(self.outside_plan.equalised)

    @cached_property
    def outside_plan(self) -> CostOutsidePlan:
        """The cost of the quantized network outside of its plan."""
        return cost_outside_plan(self.cfg, self.shop.model(self.cfg))

    @property
    def rows(self) -> int:
        """The rows that the network is asked about for one image over the sampler's table."""
        return _rows(self.model, self.table)

    @property
    def fit_rows(self) -> int:
        """The same over the table that corrections are fitted on."""
        return _rows(fit_model(self.cfg, NO_INPUTS, self.shop), self.fit_table)

    @property
    def most_rows(self) -> int:
        """The rows of a micro-batch at the step that has most."""
        fitted = fit_model(self.cfg, NO_INPUTS, self.shop)
        places = (self.model, self.table), (fitted, self.fit_table)
        return self.cfg.micro_batch * max(model.rows_per_image(step) for model, table in places for step in table)

    def padded(self, images: int) -> int:
        """The images of whole micro-batches, which are computed, where so many are wanted."""
        return math.ceil(images / self.cfg.micro_batch) * self.cfg.micro_batch

    @property
    def answer_bytes(self) -> int:
        """Bytes of one output, with the variance behind it that a table may read."""
        return self.state_bytes * (1 + any(step.is_learned for step in self.fit_table))

    @property
    def state_bytes(self) -> int:
        """Bytes of one state or output in float32."""
        return 4 * math.prod(self.model.shape)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return math.prod(self.image_shape)

    @property
    def drawn(self) -> int:
        """The images of a variant, of all seeds, padding included."""
        return len(self.cfg.seeds) * self.padded(self.cfg.images)


def _rows(model: Denoiser, table: Table) -> int:
    """The rows that a model is asked about for one image over a table; guidance asks twice."""
    return sum(model.rows_per_image(step) for step in table)


def _outline(cfg: DictConfig) -> Denoiser:
    """The denoiser that `cfg.model` names, on the meta device; one that is of no folder is built and moved there."""
    if of_folder(cfg):
        options = {name: option for name, option in plain(cfg.model).items() if not name.startswith("_")}
        return DiffusersDenoiser.outline(**options)
    denoiser: Denoiser = construct(cfg.model).to("meta")
    return denoiser
