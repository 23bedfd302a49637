"""Integers of weights and scales of activations as files: of each part, and of a network with what they belong to."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.network.integers import require_scales
from ptq_diffusion.network.step_settings import StepSettings
from ptq_diffusion.rounding.scales import Scales, is_learnable

INTEGERS, SCALES, OWNER = "integers.safetensors", "scales.safetensors", "owner.json"
"""The files of the integers and of the scales of a network, and of what they belong to."""
VERSION = 1
"""The version of their form."""


def write_integers(path: Path, integers: Integers) -> None:
    """Write integers, -128 to 255, whole or not at all."""
    write_tensors(path, {f"{name}/{bits}": tensor.to(torch.int16) for (name, bits), tensor in integers.items()})


def read_integers(path: Path) -> dict[tuple[str, int], Tensor]:
    """The integers that `write_integers` wrote, int32.

    Raises:
        ValueError: the file is broken or holds something else.
    """
    try:
        pairs = ((name.rpartition("/"), tensor) for name, tensor in load_file(path).items())
        return {(name, int(bits)): tensor.int() for (name, _, bits), tensor in pairs}
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"expected integers of weights in {path}, got something else ({error}); round again"
        ) from error


def read_part(path: Path, copies: Mapping[tuple[str, int], tuple[int, ...]]) -> dict[tuple[str, int], Tensor]:
    """The integers of one part.

    Raises:
        ValueError: they are of other weights than these copies.
    """
    integers = read_integers(path)
    shapes = {copy: tuple(tensor.shape) for copy, tensor in integers.items()}
    if odd := sorted(shapes.items() ^ copies.items()):
        (name, bits), shape = odd[0]
        raise ValueError(
            f"expected in {path} the integers of a part of this network and plan, got those of another: only one of "
            f"both has {name} at {bits} bits of {list(shape)}; remove the file and round again"
        )
    return integers


def save_integers(folder: Path, parts: Iterable[Integers], network: str, plan: str) -> None:
    """Write the integers of all parts.

    Args:
        folder: exists.
        parts: of a whole network.
        network: the fingerprint of the float model.
        plan: that of the plan.
    """
    write_integers(folder / INTEGERS, {copy: tensor for part in parts for copy, tensor in part.items()})
    write_json(folder / OWNER, _owner(network, plan))


def load_integers(folder: Path, network: str, plan: str) -> Integers:
    """The integers that `save_integers` wrote.

    Raises:
        ValueError: they are of another network or plan, or of another version.
    """
    _require_owner(folder, "integers", network, plan)
    return read_integers(folder / INTEGERS)


def write_scales(path: Path, scales: Scales) -> None:
    """Write scales, whole or not at all."""
    write_tensors(path, dict(scales))


def read_scales(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Scales:
    """The scales that `write_scales` wrote, of some operands.

    Raises:
        ValueError: the file is broken, holds no positive numbers, or is of other operands.
    """
    try:
        scales = load_file(path)
        for scale in scales.values():
            require_scales(scale)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"expected scales of activations in {path}, got something else ({error}); learn again"
        ) from error
    if odd := sorted({name: tuple(scale.shape) for name, scale in scales.items()}.items() ^ shapes.items()):
        name, shape = odd[0]
        raise ValueError(
            f"expected in {path} the scales of operands of this network and plan, got those of others: only one of "
            f"both has {name} with {list(shape)}; remove the file and learn again"
        )
    return scales


def save_scales(folder: Path, parts: Iterable[Scales], network: str, plan: str) -> None:
    """Write the scales of all parts; arguments as those of `save_integers`."""
    write_scales(folder / SCALES, {name: scale for part in parts for name, scale in part.items()})
    write_json(folder / OWNER, _owner(network, plan))


def load_scales(folder: Path, settings: StepSettings, network: str, plan: str) -> Scales:
    """The scales that `save_scales` wrote, for a network of these settings.

    Raises:
        ValueError: they are of another network or plan, or of another version.
    """
    _require_owner(folder, "scales", network, plan)
    shapes = {name: tuple(one.scale.shape) for name, one in settings.items() if is_learnable(one)}
    return read_scales(folder / SCALES, shapes)


def _owner(network: str, plan: str) -> dict[str, object]:
    return {"version": VERSION, "network": network, "plan": plan}


def _require_owner(folder: Path, what: str, network: str, plan: str) -> None:
    owner, expected = read_json(folder / OWNER), _owner(network, plan)
    if owner != expected:
        odd = next(key for key in expected if not isinstance(owner, dict) or owner.get(key) != expected[key])
        raise ValueError(
            f"expected {what} of this {odd} ({expected[odd]}) in {folder}, got those of another; make them again"
        )
