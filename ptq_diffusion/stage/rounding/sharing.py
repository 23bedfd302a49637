"""Integers of a part of a network, whose layers several devices deal out among them."""

from collections.abc import Callable
from pathlib import Path

from lightning import Fabric

from ptq_diffusion.artefact.tensors import holds_tensors
from ptq_diffusion.engine.synchronisation import synchronised
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.rounding import WeightReconstruction
from ptq_diffusion.rounding.artefact import read_integers, write_integers
from ptq_diffusion.rounding.parts import Part


def is_missing(fabric: Fabric, file: Path) -> bool:
    """Whether the first device lacks a file, for all devices, who might see a shared disk at different times."""
    missing: bool = fabric.broadcast(not holds_tensors(file))
    return missing


def make_shared(
    fabric: Fabric, work: WeightReconstruction, rounded: Callable[[Part], Integers], part: Part, file: Path
) -> None:
    """Write the integers of a part, together with all other devices.

    Each device takes whole layers, so that moments are summed in the order of one device; it asks the networks itself.

    Args:
        fabric: of this device.
        work: says which layers can be apart.
        rounded: makes the integers of a part.
        part: of a network.
        file: receives the integers.
    """
    shares = work.portions(part, fabric.world_size)
    files = [file.with_name(f"{file.stem}-{rank}.share") for rank in range(len(shares))]
    with synchronised(fabric):
        if fabric.global_rank < len(shares):
            write_integers(files[fabric.global_rank], rounded(shares[fabric.global_rank]))
    with synchronised(fabric):
        if fabric.is_global_zero:
            write_integers(file, {copy: tensor for own in files for copy, tensor in read_integers(own).items()})
            for own in files:
                own.unlink()
