"""A quantized network as a folder: packed integers, scales and settings by step; json and safetensors only."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptq_diffusion.model import Condition, Denoiser, DiffusersDenoiser, Guided
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.model.site import Site
from ptq_diffusion.network.attention import PROCESSOR, install, quantized_attentions
from ptq_diffusion.network.denoiser_description import Build, described, diffusers_denoiser, other_denoiser
from ptq_diffusion.network.embedding import quantized_embeddings, stored_tables, table_kinds
from ptq_diffusion.network.equalising import against_weight
from ptq_diffusion.network.integers import StoredWeight, require_scales
from ptq_diffusion.network.layer import CurrentStep, quantized_layer
from ptq_diffusion.network.low_rank import LEFT, whole_weight
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.network.step_settings import StepSettings
from ptq_diffusion.quantizer import described_form

DESCRIPTION, TENSORS = "quantized.json", "quantized.safetensors"
FILES = (DESCRIPTION, TENSORS)
"""The files of a folder."""
VERSION = 6
"""The version of the format."""
SETTINGS, EQUALISATION, WEIGHT, BIAS, OTHER, NULL = "settings", "equalisation", "weight", "bias", "other", "null"
TABLES = "embedding"
"""First parts of the names of tensors."""
CLASS_TABLE = "class_embedder"
"""The name of the embeddings that labels stand for."""


def save_quantized(quantized: QuantizedDenoiser, folder: Path, model: Mapping[str, Any] | None = None) -> None:
    """Write a quantized network into an existing folder; the float network is not needed to load it.

    Args:
        quantized: the network.
        folder: where to.
        model: the configuration that a denoiser which is not of diffusers is built from again.

    Raises:
        TypeError: a denoiser that is not of diffusers, and no configuration.
        ValueError: layers are rescaled, which belongs to a correction and is saved with it.
    """
    guided = quantized.denoiser
    denoiser = guided.denoiser if isinstance(guided, Guided) else guided
    if rescaled := [name for name, settings in quantized.settings.items() if settings.gain is not None]:
        raise ValueError(
            f"expected a network as it was quantized, got one with rescaled layers, such as {rescaled[0]}; save the "
            "network that `rescaled` was called on, and the correction beside it"
        )
    description = {
        "version": VERSION,
        **described(denoiser, model),
        "guidance": {"scale": guided.scale, "interval": guided.interval} if isinstance(guided, Guided) else None,
        "symmetric": quantized.symmetric(),
        "forms": quantized.forms(),
        "plan": json.loads(quantized.plan.to_json()),
    }
    if kinds := table_kinds(quantized.network):
        description[TABLES] = kinds
    save_file({name: tensor.contiguous() for name, tensor in _tensors(quantized).items()}, folder / TENSORS)
    (folder / DESCRIPTION).write_text(json.dumps(description, separators=(",", ":")) + "\n")


def load_quantized(folder: Path, build: Build | None = None) -> QuantizedDenoiser:
    """The quantized network that `save_quantized` wrote, bit for bit.

    Args:
        folder: that it was written into.
        build: from the configuration of a denoiser that is not of diffusers to the denoiser.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: the files are broken, of another version, or do not belong together; or a denoiser that is not of
            diffusers cannot be built.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"expected {name} in {folder}, a folder that a quantized network was saved in")
    with _belonging_together(folder):
        description, tensors = json.loads((folder / DESCRIPTION).read_text()), load_file(folder / TENSORS)
        if description["version"] != VERSION:
            raise ValueError(f"version {description['version']} in place of {VERSION}")
    # Its code is not ours, and its errors are no sign of broken files.
    other = other_denoiser(description, folder, build)
    with _belonging_together(folder):
        denoiser = diffusers_denoiser(description, tensors.get(CLASS_TABLE)) if other is None else other
        return _rebuilt(denoiser, description, tensors)


def equalised_layers(folder: Path) -> list[str]:
    """The names of the layers of a saved network whose input is divided by factors of its channels."""
    with safe_open(folder / TENSORS, "pt") as file:
        prefix = f"{EQUALISATION}/"
        return [name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118


def ranks_of_layers(folder: Path) -> dict[str, int]:
    """The rank of the part in 16 bits of the weights of a saved network that have one, by layer."""
    with safe_open(folder / TENSORS, "pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{WEIGHT}/") and name.endswith(f"/{LEFT}")]  # noqa: SIM118
        return {name.split("/")[1]: file.get_slice(name).get_shape()[1] for name in names}


@contextmanager
def _belonging_together(folder: Path) -> Iterator[None]:
    """Within this context errors of broken files say what was expected in their folder."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"expected a quantized network of version {VERSION} in {folder}, got other or broken files "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); quantize or export it again"
        ) from error


def _tensors(quantized: QuantizedDenoiser) -> dict[str, Tensor]:
    """Every tensor of the network by name: settings, weights and biases of layers, all other parameters."""
    tensors = {f"{SETTINGS}/{name}": tensor for name, tensor in quantized.settings.tensors().items()}
    for name, layer in quantized.layers().items():
        for place, weight in enumerate(layer.weights):
            assert isinstance(weight, StoredWeight)
            tensors |= {f"{WEIGHT}/{name}/{place}/{part}": tensor for part, tensor in weight.tensors().items()}
        if layer.bias is not None:
            tensors[f"{BIAS}/{name}"] = layer.bias
        if layer.settings.equalisation is not None:
            tensors[f"{EQUALISATION}/{name}"] = layer.settings.equalisation
    denoiser = quantized.denoiser
    if isinstance(denoiser, Guided):
        tensors |= {f"{NULL}/{name}": tensor for name, tensor in denoiser.null.tensors().items()}
        denoiser = denoiser.denoiser
    if isinstance(denoiser, DiffusersDenoiser) and denoiser.table is not None:
        tensors[CLASS_TABLE] = denoiser.table
    network, tables = quantized.network, quantized_embeddings(quantized.network)
    for name, embedding in tables.items():
        parts = embedding.table.tensors()
        tensors |= {f"{TABLES}/{name}/{part}": tensor for part, tensor in parts.items()}
    prefixes = _module_prefixes(quantized.sites(), quantized.plan, tables)
    # Some networks leave the places of tokens out of their state, as they can be computed.
    others = dict(network.named_buffers()) | network.state_dict()
    return tensors | {f"{OTHER}/{name}": tensor for name, tensor in others.items() if not name.startswith(prefixes)}


def _module_prefixes(sites: Iterable[Site], plan: BitwidthPlan, tables: Iterable[str]) -> tuple[str, ...]:
    """The beginnings of the names of tensors in modules that take the places of a float network's."""
    layers = (f"{site.name}." for site in sites if site.weighted)
    processors = (f"{name}.{PROCESSOR}." for name in quantized_attentions(sites, plan))
    return (*layers, *processors, *(f"{name}." for name in tables))


def _symmetric(rows: Iterable[tuple[str, bool, list[bool]]]) -> tuple[dict[str, bool], dict[str, list[bool]]]:
    """Whether the grids of operands and of their weights' copies are symmetric, by operand, as they were described."""
    operands, copies = {}, {}
    for name, operand, of_weight in rows:
        if odd := [one for one in (operand, *of_weight) if not isinstance(one, bool)]:
            raise TypeError(f"expected true or false of every grid of {name}, got {odd[0]!r:.60}")
        operands[name], copies[name] = operand, of_weight
    return operands, copies


def _rebuilt(float_model: Denoiser, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedDenoiser:
    """The quantized network around the layers of a float one, which is used up."""
    plan = BitwidthPlan.from_json(json.dumps(description["plan"]))
    network = float_model.network.eval()
    sites, current = float_model.sites(), CurrentStep()
    plan.require(sites, plan.steps)
    symmetric_operand, symmetric_copies = _symmetric(description["symmetric"])
    forms = {name: described_form(form) for name, form in description["forms"].items()}
    equalisation = _equalisation(sites, _below(EQUALISATION, tensors))
    table = StepSettings.of_tensors(_below(SETTINGS, tensors), symmetric_operand, forms)
    for site in (site for site in sites if site.weighted):
        layer = network.get_submodule(site.name)
        copies = zip(plan.weight_copies(site.name), symmetric_copies[site.name], strict=True)
        factors, shape = equalisation.get(site.name), site.weight_shape
        by_weight = None if factors is None else against_weight(factors, shape)
        weights = [
            whole_weight(_below(f"{WEIGHT}/{site.name}/{place}", tensors), bits, symmetric, shape, by_weight)
            for place, (bits, symmetric) in enumerate(copies)
        ]
        bias = tensors[f"{BIAS}/{site.name}"] if layer.bias is not None else None
        settings = table[site.name].with_equalisation(factors)
        network.set_submodule(site.name, quantized_layer(layer, weights, bias, settings, current))
    for name in quantized_attentions(sites, plan):
        install(network, name, table, current)
    kinds = description.get(TABLES, {})
    for name, embedding in stored_tables(network, kinds, _below(TABLES, tensors), float_model.dtype).items():
        network.set_submodule(name, embedding)
    _assign_others(network, _below(OTHER, tensors), _module_prefixes(sites, plan, kinds))
    denoiser = _guided(float_model.with_network(network.requires_grad_(False)), description, tensors)
    quantized = QuantizedDenoiser(denoiser, sites, float_model.attention_macs(), plan, current)
    _require_consistent(quantized, table, tensors)
    return quantized


def _equalisation(sites: Iterable[Site], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The factors of input channels by layer.

    Raises:
        ValueError: they are no positive numbers, or not those of a layer's channels.
    """
    shapes = {site.name: site.weight_shape for site in sites if site.weighted}
    for name, factors in tensors.items():
        require_scales(factors)
        if name not in shapes or factors.dim() != len(shapes[name]) - 1 or factors.numel() % shapes[name][1]:
            raise ValueError(f"expected factors of the input channels of a layer, got {tuple(factors.shape)} of {name}")
    return tensors


def _guided(denoiser: Denoiser, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Denoiser:
    """The denoiser with the guidance that is described, if any."""
    if (guidance := description["guidance"]) is None:
        return denoiser
    null = Condition.of_tensors(_below(NULL, tensors))
    return Guided(denoiser, null, guidance["scale"], tuple(guidance["interval"]))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with prefix/, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def _assign_others(network: nn.Module, tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> None:
    buffers = {name for name, _ in network.named_buffers() if not name.startswith(prefixes)}
    computed = buffers - network.state_dict().keys()
    for name in computed & tensors.keys():
        parent, _, child = name.rpartition(".")
        network.get_submodule(parent).register_buffer(child, tensors[name], persistent=False)
    state = {name: tensor for name, tensor in tensors.items() if name not in computed}
    missing, unexpected = network.load_state_dict(state, strict=False, assign=True)
    missing += [name for name in computed if name not in tensors]
    if odd := [*(name for name in missing if not name.startswith(prefixes)), *unexpected]:
        raise ValueError(f"expected the parameters of the network that is described, {odd[0]} has no counterpart")


def _require_consistent(quantized: QuantizedDenoiser, table: StepSettings, tensors: Mapping[str, Tensor]) -> None:
    """Refuse settings of other bits than the plan's, a bias of another shape, and what nothing reads."""
    sites, plan = quantized.sites(), quantized.plan
    plan_rows = _plan_rows(sites, plan)
    if odd := plan_rows.keys() ^ table.keys():
        raise ValueError(f"expected settings of the operands that the plan quantizes, only one of both has {min(odd)}")
    for name, rows in plan_rows.items():
        settings = table[name]
        copies = [settings.weight_copy(i) for i in range(len(settings))]
        if list(zip(settings.bits.tolist(), copies, strict=True)) not in (rows, rows * len(settings)):
            raise ValueError(f"expected settings of the plan's bits, {name} has others")
    shapes = {site.name: site.weight_shape[:1] for site in sites}
    for name, layer in quantized.layers().items():
        if layer.bias is not None and tuple(layer.bias.shape) != shapes[name]:
            raise ValueError(f"expected a bias of {shapes[name][0]} numbers at {name}, got {tuple(layer.bias.shape)}")
    if unread := tensors.keys() - _tensors(quantized).keys():
        raise ValueError(f"expected the tensors of the network that is described, nothing reads {min(unread)}")


def _plan_rows(sites: Iterable[Site], plan: BitwidthPlan) -> dict[str, list[tuple[int, int]]]:
    """Bits and the weight's copy at every step of the plan, of every operand that has settings."""
    sites, plan_rows = list(sites), {}
    for site in (site for site in sites if site.weighted):
        copies = plan.weight_copies(site.name)
        steps = [plan.at(site.name, i) for i in range(plan.steps)]
        plan_rows[site.name] = [(bits.activation, copies.index(bits.weight)) for bits in steps]
    for site in (site for products in quantized_attentions(sites, plan).values() for site in products):
        steps = [plan.at(site.name, i) for i in range(plan.steps)]
        first, second = site.operands
        plan_rows |= {first: [(bits.activation, 0) for bits in steps], second: [(bits.weight, 0) for bits in steps]}
    return plan_rows
