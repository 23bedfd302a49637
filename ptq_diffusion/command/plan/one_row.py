"""The quantized network of an experiment, made from a single row of noise."""

import copy

import torch
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.command.plan.bits import dearest
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import QuantizedDenoiser, quantize
from ptq_diffusion.network.equalising import InputMaxima

NO_SEARCH = {"_target_": "ptq_diffusion.quantizer.MinMax"}
"""The range search that takes no time."""


def quantized_by_one_row(cfg: DictConfig, case: Case, shop: Workshop) -> QuantizedDenoiser:
    """The quantized network whose ranges are those of a single row: kinds, shapes and times depend on no number.

    Where bits are measured those of the dearest offer stand for them.

    Args:
        cfg: the whole configuration.
        case: the same with outlines.
        shop: loads the float network.

    Raises:
        FileNotFoundError: the folder of the model has no weights.
    """
    simple, model = _without_searches(cfg), shop.model(cfg)
    x_t = torch.randn(1, *model.shape, device=shop.device)
    observations = shop.observations(simple, model)
    rule, maxima = construct(cfg.quantizer.equalisation), InputMaxima(model.sites())
    for observer in (maxima, observations) if rule.equalises else (observations,):
        with torch.no_grad(), observer.observing(model.network):
            model.predict(x_t, case.table[0], model.blank_condition(1, shop.device))
        if observer is maxima:
            observations.equalise(maxima.factors(model.network, rule))
    weight, rank = construct(simple.quantizer.weight), construct(cfg.quantizer.low_rank).rank
    quantizers = {"weight": weight, "rank": rank, "table_bits": construct(cfg.quantizer.embedding).bits}
    return quantize(shop.host.model(cfg), dearest(case), observations, **quantizers).to(shop.device)


def _without_searches(cfg: DictConfig) -> DictConfig:
    """The configuration with quantizers that take whole ranges."""
    simple = copy.deepcopy(cfg)
    OmegaConf.set_struct(simple, False)
    for operand in simple.quantizer.values():
        if isinstance(operand, DictConfig) and "range_search" in operand:
            operand.range_search = NO_SEARCH
    return simple
