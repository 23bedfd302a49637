"""The quantized network of an experiment, found from a single row of noise."""

import torch
from omegaconf import DictConfig

from ptq_diffusion.command.plan.bits import dearest
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import QuantizedDenoiser, quantize


def quantized_by_one_row(cfg: DictConfig, case: Case, shop: Workshop) -> QuantizedDenoiser:
    """The quantized network whose ranges are those of a single row: kinds, shapes and times depend on no number.

    Args:
        cfg: the whole configuration.
        case: the same with outlines.
        shop: loads the float network.

    Raises:
        FileNotFoundError: the folder of the model has no weights.
    """
    model = shop.model(cfg)
    x_t = torch.randn(1, *model.shape, device=shop.device)
    observations = shop.observations(cfg, model)
    with torch.no_grad(), observations.observing(model.network):
        model.predict(x_t, case.table[0], model.blank_condition(1, shop.device))
    host = shop.host.model(cfg)
    weight, rank = construct(cfg.quantizer.weight), cfg.quantizer.low_rank.rank
    return quantize(host, dearest(case), observations, weight, rank=rank).to(shop.device)
