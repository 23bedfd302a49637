"""A reconstruction's networks and calibration states, and the resumable loop over the parts of the network."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.artefact.tensors import holds_tensors
from ptq_diffusion.data import ChosenStates
from ptq_diffusion.engine.factory import construct, plain
from ptq_diffusion.engine.plugins import PLUGINS, plugins_of
from ptq_diffusion.engine.runtime import track
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.rounding import Reads, Subject
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.stage.calibration.choose_states import ChooseStates, read_set
from ptq_diffusion.stage.calibration.states import States
from ptq_diffusion.stage.trajectories import Trajectories, calibration_chunks

PARTS, CALLS = "parts", "calls"
"""Folders of the parts that are done, behind which an attempt that was interrupted goes on, and of a block's calls."""


def reads_of(cfg: DictConfig) -> Reads:
    """The evidence that the rounding of a configuration reads."""
    return _reads(json.dumps(plain(cfg.rounding)), plugins_of(cfg))


@cache
def _reads(rounding: str, plugins: tuple[str, ...]) -> Reads:
    """The evidence that a rounding reads, built once of its options, for signatures ask a hundred times in a run."""
    reads: Reads = construct(OmegaConf.create({"rounding": json.loads(rounding), PLUGINS: [*plugins]}).rounding).reads
    return reads


def subject_of(cfg: DictConfig, inputs: Mapping[str, Path], quantized: QuantizedDenoiser, shop: Workshop) -> Subject:
    """The float network and its quantized copy with the states of the calibration set.

    Args:
        cfg: the configuration.
        inputs: artefacts by name.
        quantized: on the workshop's device.
        shop: builds the float network.
    """
    model = shop.guided(cfg, inputs)
    table, conditions = shop.table(cfg, model), shop.conditions(cfg, model, inputs)
    sets = read_set(inputs[ChooseStates.name]), ChosenStates.every(len(table), cfg.calibration.images)
    states, trajectories = (
        States(inputs[Trajectories.name] / "chunks", calibration_chunks(cfg), chosen, conditions) for chosen in sets
    )
    return Subject(model, quantized, construct(cfg.quantizer.weight), table, states, trajectories)


def make_in_order(
    parts: Sequence[Part],
    out: Path,
    bar: tuple[str, bool],
    make: Callable[[Part, Path], None],
    take: Callable[[Part, Path], None],
    is_missing: Callable[[Path], bool] = lambda file: not holds_tensors(file),
) -> dict[Part, Path]:
    """Make the missing files of the parts in order, and load each before the next part is made; returns the files.

    Args:
        parts: of a network.
        out: the folder of the artefact.
        bar: the title of the progress bar, and whether it is drawn.
        make: writes the file of a part.
        take: loads the file of a part into the network, on which later parts are learned.
        is_missing: whether a file is to be made, for all devices that share the work.
    """
    folder = out / PARTS
    folder.mkdir(exist_ok=True)
    files = {part: folder / f"{place:04d}.safetensors" for place, part in enumerate(parts)}
    for part in track(parts, *bar):
        if is_missing(files[part]):
            make(part, files[part])
        take(part, files[part])
    return files
