"""Integers of weights as files: those of each part, and of a whole network with what they belong to."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.files import read_json, write_json, write_tensors
from ptq_diffusion.network.insertion import Integers

INTEGERS, OWNER = "integers.safetensors", "owner.json"
"""The files of the integers of a network."""
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
    write_json(folder / OWNER, {"version": VERSION, "network": network, "plan": plan})


def load_integers(folder: Path, network: str, plan: str) -> Integers:
    """The integers that `save_integers` wrote.

    Raises:
        ValueError: they are of another network or plan, or of another version.
    """
    owner, expected = read_json(folder / OWNER), {"version": VERSION, "network": network, "plan": plan}
    if owner != expected:
        odd = next(key for key in expected if not isinstance(owner, dict) or owner.get(key) != expected[key])
        raise ValueError(
            f"expected integers of this {odd} ({expected[odd]}) in {folder}, got those of another; round again"
        )
    return read_integers(folder / INTEGERS)
