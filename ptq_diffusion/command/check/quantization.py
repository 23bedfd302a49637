"""Checks of quantizers, bits and rounding against each other and the network, before anything is computed."""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig

from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage, needed
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.model.site import Role, Site, products_by_attention
from ptq_diffusion.network import InputObservations, Simulated
from ptq_diffusion.network.backend import require_float32
from ptq_diffusion.network.embedding import embeddings
from ptq_diffusion.network.integers import require_of_weights
from ptq_diffusion.network.low_rank import quantizer_of_layer
from ptq_diffusion.network.observing import MOST_BITS
from ptq_diffusion.network.onnx.requirements import require_input, require_scales
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import DynamicQuantizer, Static
from ptq_diffusion.rounding import Reads
from ptq_diffusion.stage.rounding.learn_scales import LearnScales, require_learnable
from ptq_diffusion.stage.rounding.offered import RoundOffers
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct, require_reconstructable
from ptq_diffusion.stage.writing.onnx import WriteOnnx

Offers = Mapping[Site, frozenset[LayerBits]]
"""The bits that a plan may give every site."""
CHOSEN_AT_ONCE = 1_000_000
"""States of a calibration set that are chosen within seconds."""


def check_quantization(cfg: DictConfig, model: Denoiser, goal: type[Stage], shop: Workshop) -> None:
    """Refuse quantizers that do not fit the network, that nothing is quantized by, or that graphs have no nodes for.

    Raises:
        ValueError: the message says which option to set.
    """
    _check_dtype(cfg, model, goal)
    offers = possible_bits(construct(cfg.bitwidth), model)
    _check_softmax(cfg, offers)
    _check_weights(cfg, offers)
    _check_equalisation(cfg, offers)
    _check_low_rank(cfg, model, offers)
    _check_embeddings(cfg, model)
    if goal is RoundOffers:
        _check_offered(cfg)
    if Reconstruct in needed(goal):
        _check_rounding(cfg, offers, goal)
    if LearnScales in needed(goal):
        _check_scales(cfg, offers, goal)
    if goal is WriteOnnx:
        _check_nodes(cfg, model, offers, shop)


def check_calibration(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    """Refuse groups of steps or a calibration set that do not fit the network, the table or what observes them.

    Raises:
        ValueError: the message says which option to set.
    """
    steps, activation = construct(cfg.quantizer.steps), construct(cfg.quantizer.activation)(MOST_BITS)
    if steps.by_step and isinstance(activation, DynamicQuantizer):
        raise ValueError(
            "expected one group of steps beside a quantizer of activations that takes its grids at run time, got "
            "quantizer.steps with ranges of their own; set step_groups@quantizer.steps=one"
        )
    table = shop.table(cfg, model)
    _check_calibration_set(cfg, model, shop.observations(cfg, model, steps, len(table)), len(table))


def _check_dtype(cfg: DictConfig, model: Denoiser, goal: type[Stage]) -> None:
    """Refuse a dtype that integers and graphs of them do not compute between layers, or that gradients vanish in."""
    backend = construct(cfg.backend)
    if not isinstance(backend, Simulated):
        require_float32(model.dtype, f"backend={backend.name}")
    if goal is WriteOnnx:
        require_float32(model.dtype, "goal=onnx")
    by_gradients: dict[type[Stage], bool] = {
        Reconstruct: construct(cfg.rounding).reads is Reads.CALLS,
        LearnScales: construct(cfg.activation_scales).learns,
    }
    if model.dtype is torch.float16 and any(by_gradients.get(stage) for stage in needed(goal)):
        raise ValueError(
            "expected a network in bfloat16 or float32 beside what gradients learn, for which float16 is too narrow, "
            "got float16; set model.dtype=bfloat16, or rounding=gptq and activation_scales=searched"
        )


def possible_bits(policy: BitwidthPolicy, model: Denoiser) -> Offers:
    """The bits that a plan of a policy may give every site of a network."""
    sites = model.architecture().sites
    fixed = policy.roles.fixed(sites)
    return {site: frozenset([fixed[site.name]] if site.name in fixed else policy.offered) for site in sites}


def _check_softmax(cfg: DictConfig, offers: Offers) -> None:
    """Refuse a quantizer of softmax outputs where all of them stay in float."""
    if not cfg.quantizer.get("softmax"):
        return
    outputs = [bits for site, some in offers.items() if site.name.endswith(".pv") for bits in some]
    if not outputs:
        raise ValueError(
            "expected a network with attention whose softmax outputs can be quantized, got one without; leave out "
            "quantizer@quantizer.softmax"
        )
    if all(bits.activation == FLOAT_BITS for bits in outputs):
        raise ValueError(
            "expected bits for attention's products beside quantizer@quantizer.softmax, got products in float, whose "
            "softmax nothing quantizes; add bitwidth.attention.activation=8 bitwidth.attention.weight=8"
        )


def _check_weights(cfg: DictConfig, offers: Offers) -> None:
    """Refuse a quantizer of weights that is none, or whose groups a weight does not have."""
    quantizer = construct(cfg.quantizer.weight)(MOST_BITS)
    try:
        require_of_weights(quantizer)
    except TypeError as error:
        raise ValueError(f"{error}; choose another quantizer@quantizer.weight") from error
    for site, some in offers.items():
        if site.weighted and any(bits.weight != FLOAT_BITS for bits in some):
            try:
                quantizer.granularity.parameter_shape(site.weight_shape)
            except ValueError as error:
                raise ValueError(f"{error} at {site.name}; change quantizer.weight.granularity") from error


def _check_rounding(cfg: DictConfig, offers: Offers, goal: type[Stage]) -> None:
    """Refuse a rounding that reads what no stage collects, or one that has no weight to round."""
    rounding = construct(cfg.rounding)
    if rounding.reads is not Reads.NOTHING or goal is Reconstruct:
        require_reconstructable(rounding)
        if all(bits.weight == FLOAT_BITS for site, some in offers.items() if site.weighted for bits in some):
            raise ValueError(
                f"expected weights of fewer bits to round, got rounding={cfg.labels.rounding} with bitwidth="
                f"{cfg.labels.bitwidth}, which leaves all of them in float; set rounding=nearest or another bitwidth"
            )


def _check_offered(cfg: DictConfig) -> None:
    """Refuse integers of bits that nothing offers, or that no rounding chooses."""
    if not RoundOffers.serves(cfg) or not isinstance(construct(cfg.bitwidth), UnderBudget):
        raise ValueError(
            "expected a budget that offers weights several bitwidths and a rounding that reads something, got "
            f"bitwidth={cfg.labels.bitwidth} and rounding={cfg.labels.rounding}; set bitwidth=budget "
            "bitwidth.weights=[3,4] rounding=gptq, or another goal"
        )


def _check_scales(cfg: DictConfig, offers: Offers, goal: type[Stage]) -> None:
    """Refuse scales to be learned where no activation has one."""
    rule, form = construct(cfg.activation_scales), construct(cfg.quantizer.activation)(MOST_BITS).form
    if rule.learns or goal is LearnScales:
        require_learnable(rule)
        if not isinstance(form, Static):
            raise ValueError(
                f"expected activations on static grids, whose scales are learned, got {form}; set "
                "activation_scales=searched or quantizer@quantizer.activation=affine_per_tensor"
            )
        if all(bits.activation == FLOAT_BITS for some in offers.values() for bits in some):
            raise ValueError(
                f"expected activations of fewer bits whose scales are learned, got bitwidth={cfg.labels.bitwidth}, "
                "which leaves all of them in float; set activation_scales=searched or another bitwidth"
            )


def _check_nodes(cfg: DictConfig, model: Denoiser, offers: Offers, shop: Workshop) -> None:
    """Refuse quantizers of what is quantized that graphs have no nodes for."""
    if construct(cfg.quantizer.low_rank).rank:
        raise ValueError(
            "expected weights of integers alone, which DequantizeLinear has, got a part of low rank beside them; set "
            "quantizer.low_rank.rank=0, or goal=export"
        )
    observations = shop.observations(cfg, model)
    softmax = {f"{attention}.p" for attention in products_by_attention(offers)} if cfg.quantizer.get("softmax") else ()
    weight = construct(cfg.quantizer.weight)(MOST_BITS)
    for site, some in offers.items():
        bits = [{one.activation for one in some}, {one.weight for one in some}]
        for operand, widths in zip(site.operands, bits, strict=False):
            if widths != {FLOAT_BITS}:
                place = "softmax" if operand in softmax else "activation"
                try:
                    require_input(operand, observations.form(operand), f"quantizer.{place}")
                except TypeError as error:
                    raise ValueError(str(error)) from error
        if site.weighted and bits[1] != {FLOAT_BITS}:
            require_scales(site.name, weight.granularity.parameter_shape(site.weight_shape), site.weight_shape[0])


def _check_equalisation(cfg: DictConfig, offers: Offers) -> None:
    """Refuse factors of channels where no grid would meet them."""
    equalises = construct(cfg.quantizer.equalisation).equalises
    if equalises and all(
        bits.activation == FLOAT_BITS for site, some in offers.items() if site.weighted for bits in some
    ):
        raise ValueError(
            f"expected quantized inputs of layers beside quantizer.equalisation, got bitwidth={cfg.labels.bitwidth}, "
            "which leaves all of them in float; set equalisation@quantizer.equalisation=none or another bitwidth"
        )


def _check_low_rank(cfg: DictConfig, model: Denoiser, offers: Offers) -> None:
    """Refuse a part of weights in 16 bits that a layer has not, of float weights, or beside a rounding."""
    rank = construct(cfg.quantizer.low_rank).rank
    if not rank:
        return
    inner = [site for site in offers if site.weighted and site.role is Role.INNER]
    for site in inner:
        quantizer_of_layer(construct(cfg.quantizer.weight), rank, site, model.network.get_submodule(site.name))
    if all(bits.weight == FLOAT_BITS for site in inner for bits in offers[site]):
        raise ValueError(
            "expected weights of inner layers with fewer bits beside a part of low rank, got bitwidth="
            f"{cfg.labels.bitwidth}, which leaves them in float; set quantizer.low_rank.rank=0 or another bitwidth"
        )
    if construct(cfg.rounding).reads is not Reads.NOTHING:
        raise ValueError(
            f"expected rounding=nearest beside a part of low rank, got {cfg.labels.rounding}, which rounds whole "
            "weights; set rounding=nearest or quantizer.low_rank.rank=0"
        )


def _check_embeddings(cfg: DictConfig, model: Denoiser) -> None:
    """Refuse bits of tables of embeddings that a network has not, or whose groups a table does not have."""
    if (bits := construct(cfg.quantizer.embedding).bits) == FLOAT_BITS:
        return
    tables = embeddings(model.network)
    if not tables:
        raise ValueError(
            f"expected a network with tables of embeddings beside quantizer.embedding.bits={bits}, got one without; "
            f"set quantizer.embedding.bits={FLOAT_BITS}"
        )
    granularity = construct(cfg.quantizer.weight)(bits).granularity
    for name, table in tables.items():
        try:
            granularity.parameter_shape(tuple(table.weight.shape))
        except ValueError as error:
            raise ValueError(f"{error} at {name}; change quantizer.weight.granularity") from error


def _check_calibration_set(cfg: DictConfig, model: Denoiser, observations: InputObservations, steps: int) -> None:
    """Refuse a set that does not fit, as far as it is known before the network is asked."""
    rule, images = construct(cfg.calibration_set), cfg.calibration.images
    size = rule.size(steps, images)
    if rule.feature_images and not model.blocks():
        raise ValueError(
            f"expected a network with blocks, whose features {cfg.labels.calibration_set} reads, got one without; set "
            "calibration_set=uniform or name them in blocks()"
        )
    # Of more states a choice takes long, and the stage that observes them refuses it as well.
    if observations.steps > 1 and not rule.feature_images and size <= CHOSEN_AT_ONCE:
        observations.require(rule.states(steps, images, cfg.calibration.seed).counts)
