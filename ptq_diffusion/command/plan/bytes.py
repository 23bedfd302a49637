"""Bytes that stages leave in the store, from the configuration alone."""

import json
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ptq_diffusion.bitwidth.cost import plan_cost
from ptq_diffusion.command.plan.bits import dearest
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.correction import Correction, Fingerprint, NoiseStatistics
from ptq_diffusion.correction.method.chain import Chain
from ptq_diffusion.correction.method.matched import Matched
from ptq_diffusion.correction.method.regression import Regression
from ptq_diffusion.data import Prompts
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import DiffusersDenoiser, Role, Site
from ptq_diffusion.network.attention import quantized_attentions
from ptq_diffusion.network.embedding import embeddings
from ptq_diffusion.network.layer import is_padded
from ptq_diffusion.network.layer_settings import ROWS
from ptq_diffusion.network.observing import MOST_BITS
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.numeric.spectrum import RINGS, radial_bands
from ptq_diffusion.quantizer import Shift
from ptq_diffusion.stage.drawing.layers import COLUMNS, layer_chunks
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.reference import build_extractor

ENTRY = 120
"""Bytes that a tensor's name, type, shape and place take in the header of a safetensors file, about."""
DOUBLE = 8
IN_EMBEDDING = {"labels", "pooled", "ids"}
"""Parts of a condition that are added to the embedding of the time, of which every image then has its own."""
OF_TIME = {"time_embedding", "timestep_embedder"}
"""Modules of diffusers' networks that embed the time before anything is added."""
NAME_LINE = "  ,\n"
"""The characters around a name on its line of a list in JSON."""
MEASURED = 2
"""Images that a size is measured on."""


def bytes_of_prompts(case: Case) -> int:
    """Bytes of the encoded prompts: a row for every distinct one and for the negative."""
    source, model = construct(case.cfg.condition.source), case.shop.model(case.cfg)
    assert isinstance(source, Prompts) and isinstance(model, DiffusersDenoiser)
    numbers = sum(math.prod(shape) for name, shape in model.row_shapes().items() if name != "scale")
    return 4 * numbers * (len(set(source.texts())) + 1)


def bytes_of_observations(case: Case) -> int:
    """Bytes of the observations of every operand, grid and group of steps, by those of one that has seen one value."""
    quantizer, groups = construct(case.cfg.quantizer.activation)(MOST_BITS), construct(case.cfg.quantizer.steps)
    quantizer.observe(torch.zeros(1, 1, 1, 1))
    one, total = quantizer.observation(), 0
    for site in case.model.sites():
        channels = site.weight_shape[1] if site.weighted else 1
        grids = math.prod(quantizer.granularity.parameter_shape((1, channels, 1, 1)))
        for operand in site.operands:
            count = len(case.table) if groups.is_exact(operand) else groups.count
            total += count * (grids * size(one.values()) + ENTRY * len(one)) + ENTRY
    return total + bytes_of_equalisation(case)


def bytes_of_equalisation(case: Case) -> int:
    """Bytes of the factors of input channels."""
    sites = (site for site in case.model.sites() if site.name in case.equalised)
    return sum(4 * site.weight_shape[1] + ENTRY for site in sites)


def bytes_of_quantized(case: Case) -> int:
    """Bytes of packed integers, scales, settings of every step of the plan, and all other parameters."""
    plan, sites = dearest(case), case.model.sites()
    architecture, steps = case.model.architecture(case.table), len(case.table)
    stored = plan_cost(architecture, plan, steps, case.outside_plan).stored_bits // 8
    weighted = [site for site in sites if site.weighted]
    quantizer = construct(case.cfg.quantizer.weight)(MOST_BITS)
    scales = sum(math.prod(quantizer.granularity.parameter_shape(site.weight_shape)) * 4 for site in weighted)
    products = [site for products in quantized_attentions(sites, plan).values() for site in products]
    operands = sum(len(site.operands) for site in (*weighted, *products))
    steps = len(case.table) if construct(case.cfg.quantizer.steps).by_step else plan.steps
    settings = sum(torch.empty((), dtype=dtype).element_size() for dtype in ROWS.values()) * steps * operands
    buffers = size(buffer for name, buffer in case.model.network.named_buffers())
    return (
        bytes_of_equalisation(case)
        + stored
        + scales
        + bytes_of_table_scales(case)
        + settings
        + buffers
        + len(plan.to_json())
        + 4 * ENTRY * len(weighted)
    )


def bytes_of_table_scales(case: Case) -> int:
    """Bytes of the scales of tables of embeddings in integers."""
    bits = construct(case.cfg.quantizer.embedding).bits
    if bits == FLOAT_BITS:
        return 0
    shapes = [tuple(table.weight.shape) for table in embeddings(case.model.network).values()]
    granularity = construct(case.cfg.quantizer.weight)(bits).granularity
    return sum(4 * math.prod(granularity.parameter_shape(shape)) + ENTRY for shape in shapes)


def bytes_of_scales(case: Case) -> int:
    """Bytes of the scales of every step of each operand that has static grids, of which this takes one."""
    plan = dearest(case)
    steps = len(case.table) if construct(case.cfg.quantizer.steps).by_step else plan.steps
    return (4 * steps + ENTRY) * sum(len(site.operands) for site in case.model.sites())


def bytes_of_noise(case: Case) -> int:
    """Bytes of moments, those of every chunk and those of all, by moments of random numbers at two steps."""
    batch = [torch.randn(MEASURED, *case.model.shape) for _ in range(3)]
    visits = ((batch[0], batch[1], batch[2]) for _ in range(2))
    tensors = NoiseStatistics.of(Fingerprint("", "", case.model.shape), visits, 0).tensors()
    at_second = {name: tensor for name, tensor in tensors.items() if name.startswith("1/")}
    images = case.cfg.noise.images
    rows = size(tensor for tensor in at_second.values() if tensor.shape[:1] == (MEASURED,)) // MEASURED
    rest = size(tensor for tensor in at_second.values() if tensor.shape[:1] != (MEASURED,)) + ENTRY * len(at_second)
    files = 1 + math.ceil(images / case.cfg.micro_batch)
    return len(case.fit_table) * (2 * images * rows + files * rest)


def bytes_of_coefficients(correction: Correction[Any], case: Case) -> int:
    """Bytes of a fitted correction: at every step those of its links, rescaled layers among them."""
    links = list(correction.links.values()) if isinstance(correction, Chain) else [correction]
    return len(case.table) * sum(_bytes_of_link(link, case) for link in links)


def bytes_of_path_fit(correction: Correction[Any], case: Case) -> int:
    """Bytes of the files of two steps: states, outputs, learned variances and features of all images."""
    last = next(site for site in case.model.sites() if site.role is Role.LAST)
    patches = math.prod(case.model.shape[1:]) // case.model.patch_size**2
    states = 5 if correction.reads.value == "corrected" else 3
    states += 2 * any(step.is_learned for step in case.fit_table)
    image = states * case.state_bytes + 4 * last.weight_shape[1] * patches
    return 2 * case.padded(case.cfg.noise.images) * image


def bytes_of_features(case: Case) -> int:
    """Bytes of the features of all variants' images, by those of one blank image."""
    extractor = build_extractor(case.cfg)
    one = extractor.extract(torch.zeros(1, *case.image_shape, dtype=torch.uint8))
    parts = (part for part in (one.vectors, one.spatial, one.probabilities) if part is not None)
    return len(VARIANTS) * case.cfg.images * len(case.cfg.seeds) * size(parts)


def bytes_of_layer_errors(case: Case) -> int:
    """Bytes of the errors of all sites at every step, and of the sites' names as JSON has them, one a line."""
    sites = case.model.sites()
    errors = len(COLUMNS) * (DOUBLE * len(sites) * len(case.table) + ENTRY)
    return errors + sum(len(json.dumps(site.name)) + len(NAME_LINE) for site in sites)


def bytes_of_layer_chunks(case: Case) -> int:
    """Bytes of the sums of squares of all chunks, and of the order of their sites."""
    sites = len(case.model.sites())
    one = (1 + len(COLUMNS)) * (DOUBLE * sites * len(case.table) + ENTRY) + DOUBLE * sites + ENTRY
    return len(layer_chunks(case.cfg)) * one


def _bytes_of_link(link: Correction[Any], case: Case) -> int:
    channels, patch = case.model.shape[0], case.model.patch_size
    layers = [site for site in case.model.sites() if site.weighted and site.role is not Role.LAST]
    if link.images_for_rescaling:
        shifted = [site for site in layers if link.shift.shifts and _can_be_shifted(site, case, link.shift)]
        inputs = sum(4 * site.weight_shape[1] + ENTRY for site in shifted)
        paired = link.differences is not None and case.cfg.condition.guidance.scale != 1
        scales = len(layers) * (4 + ENTRY) if paired else 0
        return sum(2 * 4 * site.weight_shape[0] + 4 * ENTRY for site in layers) + inputs + scales
    if isinstance(link, Regression):
        last = next(site for site in case.model.sites() if site.role is Role.LAST)
        observed = channels * patch**2 if link.on_features else channels
        inputs = observed * (link.on_q**2 + link.on_x**2) + last.weight_shape[1] * link.on_features**2
        return DOUBLE * observed * (inputs + 1) + 4 * ENTRY
    if isinstance(link, Matched):
        bands = int(radial_bands(*case.model.shape[1:], RINGS).max()) + 1
        return DOUBLE * (2 * bands * channels**2 + channels) + 3 * ENTRY
    return DOUBLE * (1 + channels) + 2 * ENTRY


def _can_be_shifted(site: Site, case: Case, shift: Shift) -> bool:
    """Whether an input is shifted: not in a border of zeros, nor where it is the same in all images, as of the time."""
    layer = case.model.network.get_submodule(site.name)
    if isinstance(layer, nn.Conv2d):
        return shift.shifts_bordered or not is_padded(layer)
    one_row = site.macs == math.prod(site.weight_shape)
    of_time = IN_EMBEDDING.isdisjoint(case.model.needs) or not OF_TIME.isdisjoint(site.name.split("."))
    return not (one_row and of_time)


def size(tensors: Iterable[Tensor]) -> int:
    """The bytes of some tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
