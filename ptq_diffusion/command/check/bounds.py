"""Estimates of what an experiment needs at least, and refusals of what cannot fit this machine.

They are bounds from below: of memory and disk only what surely is there at one time counts, of time a rate that no
machine reaches. What passes may still run out; what is refused would have, after hours.
"""

import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

import torch
from omegaconf import DictConfig

from ptq_diffusion.correction import Auto
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network.layer_errors import POWER
from ptq_diffusion.stage.drawing.layers import AT_ONCE, COLUMNS

FLOAT = 4
"""Bytes of a number of the network."""
SUM = 8
"""Bytes of a sum of squares."""
FASTEST = {"cpu": 1e13}
FASTEST_ACCELERATOR = 2e15
"""Multiply-accumulates a second that no device of today does."""
LONGEST = 60 * 24 * 3600
"""Seconds that nobody waits for, 60 days."""
NOISE, CALIBRATION, LAYERS = "noise", "calibration", "layers"
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True)
class Amount:
    """An amount of something that is needed at least.

    Args:
        size: bytes, or seconds.
        least: what is left of it with one of the options that it grows with at its smallest, by the names of those
            options, which make up one number.
    """

    size: float
    least: Mapping[tuple[str, ...], float]

    def remedy(self, most: float) -> str:
        """The advice, in words: lower any option that alone makes the amount fit, or all where none does."""
        if not self.least:
            return "all numbers are at their least: take a larger machine or a smaller model"
        sufficient = [names for names, size in self.least.items() if size <= most]
        return f"lower {_listed(chain(*sufficient), 'or') if sufficient else _listed(chain(*self.least), 'and')}"


@dataclass(frozen=True)
class Needs:
    """The least that an experiment needs.

    Args:
        device_memory: for one forward of a micro-batch.
        memory: for all images and their features.
        disk: for what the store keeps.
        time: on this machine's devices.
    """

    device_memory: Amount
    memory: Amount
    disk: Amount
    time: Amount


@dataclass(frozen=True)
class Room:
    """The most that an experiment may take.

    Args:
        device_memory: bytes of the device.
        memory: bytes of the machine.
        disk: bytes of the disk of the outputs.
        time: seconds.
    """

    device_memory: float
    memory: float
    disk: float
    time: float = LONGEST

    @classmethod
    def unlimited(cls) -> "Room":
        """Room for whatever fits some other machine."""
        return cls(math.inf, math.inf, math.inf, math.inf)

    @classmethod
    def here(cls, outputs: Path, device: torch.device) -> "Room":
        """The room of this machine; `outputs` need not be there yet."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        own = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory
        folder = next(parent for parent in (outputs.absolute(), *outputs.absolute().parents) if parent.is_dir())
        return cls(own, memory, shutil.disk_usage(folder).free)


@dataclass(frozen=True)
class Drawn:
    """Numbers of samples that an experiment draws, 0 of what its goal does not take.

    Args:
        images: of each variant, over all seeds.
        noise: that the noise is measured on.
        calibration: that ranges are found on.
        trial: of all candidates of a choice together.
        layers: that layers are compared on.
    """

    images: int
    noise: int
    calibration: int
    trial: int
    layers: int

    @classmethod
    def of(cls, cfg: DictConfig, used: Collection[str], correction: object) -> "Drawn":
        """The samples of a goal that reads these parts of a configuration, of a correction that may be `Auto`."""
        noise, calibration, layers = (cfg[part].images if part in used else 0 for part in (NOISE, CALIBRATION, LAYERS))
        images = cfg.images * len(cfg.seeds) if "images" in used else 0
        trial = correction.images * len(correction.candidates) if isinstance(correction, Auto) else 0
        return cls(images, noise, calibration, trial, layers)


@dataclass(frozen=True)
class Extent(Drawn):
    """The numbers that needs grow with.

    Args:
        steps: of the sampler.
        features: the length of a feature vector; 0 where nothing is judged.
        prompts: the bytes of all encoded prompts, which are kept on the disk.
        micro_batch: samples that are computed together.
        parameters: of the model.
    """

    steps: int
    features: int
    prompts: int
    micro_batch: int
    parameters: int


OPTIONS: Mapping[str, tuple[str, ...]] = {
    "images": ("images", "seeds"),
    "noise": ("noise.images",),
    "calibration": ("calibration.images",),
    "trial": ("trial.images",),
    "layers": ("layers.images",),
    "steps": ("sampler.steps",),
    "features": ("the size of feature.extractor",),
    "prompts": ("the number of prompts",),
    "micro_batch": ("micro_batch",),
    "parameters": ("the size of the model",),
}
"""The options that each number of an extent follows from, in words."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network, of which needs are multiples.

    Args:
        sample: numbers of a state.
        widest: numbers of the widest output of a layer for one sample.
        sites: of the network.
        macs: multiply-accumulates of a forward.
        rate: multiply-accumulates a second that all devices together do at most.
    """

    sample: int
    widest: int
    sites: int
    macs: int
    rate: float

    @classmethod
    def of(cls, model: Denoiser, rate: float) -> "Sizes":
        """The sizes of a model on devices of a rate."""
        sample, sites = math.prod(model.shape), model.sites()
        outputs = (site.macs // math.prod(site.weight_shape[1:]) for site in sites if site.weighted)
        macs = sum(site.macs for site in sites) + model.architecture().attention_macs
        return cls(sample, max([sample, *outputs]), len(sites), macs, rate)

    def device_memory(self, extent: Extent) -> float:
        """Bytes of one forward of a micro-batch."""
        return FLOAT * (extent.parameters + extent.micro_batch * self.widest)

    def memory(self, extent: Extent) -> float:
        """Bytes of all images and their features."""
        judged = 3 * extent.images * (self.sample + FLOAT * extent.features) + 3 * 8 * extent.features**2
        return judged + self.sample * extent.trial

    def disk(self, extent: Extent) -> float:
        """Bytes of images, of float paths, of encoded prompts, and of the errors of layers."""
        pixels = self.sample * (3 * extent.images + extent.trial)
        paths = FLOAT * self.sample * extent.steps * (extent.calibration + extent.noise)
        errors = SUM * len((POWER, *COLUMNS)) * self.sites * extent.steps
        return pixels + paths + extent.prompts + errors * math.ceil(extent.layers / AT_ONCE)

    def time(self, extent: Extent) -> float:
        """Seconds of all samplings."""
        once, twice = extent.calibration + extent.trial, extent.noise + extent.layers
        return self.macs * extent.steps * (3 * extent.images + 2 * twice + once) / self.rate


def needs(
    cfg: DictConfig,
    model: Denoiser,
    drawn: Drawn,
    steps: int,
    features: int,
    device: torch.device,
    conditions: int = 0,
) -> Needs:
    """The least that an experiment needs.

    Args:
        cfg: its configuration.
        model: the float model.
        drawn: the samples that it draws.
        steps: of the sampler.
        features: the length of a feature vector; 0 where nothing is judged.
        device: where networks run.
        conditions: the bytes of all encoded prompts, which are kept on the disk.
    """
    counts = {field.name: getattr(drawn, field.name) for field in fields(Drawn)}
    parameters = model.architecture().parameters
    extent = Extent(
        **counts, steps=steps, features=features, prompts=conditions, micro_batch=cfg.micro_batch, parameters=parameters
    )
    sizes = Sizes.of(model, FASTEST.get(device.type, FASTEST_ACCELERATOR) * cfg.runtime.devices)
    return Needs(*(_amount(size, extent) for size in (sizes.device_memory, sizes.memory, sizes.disk, sizes.time)))


def _amount(size: Callable[[Extent], float], extent: Extent) -> Amount:
    """An amount with what is left of it with each number of its extent at 1."""
    whole = size(extent)
    left = {names: size(replace(extent, **{number: 1})) for number, names in OPTIONS.items() if getattr(extent, number)}
    return Amount(whole, {names: amount for names, amount in left.items() if amount < whole})


def require_room(needs: Needs, room: Room) -> None:
    """Refuse an experiment that cannot fit.

    Raises:
        ValueError: the message says what is needed at least, what there is and what to lower.
    """
    for name, amount, most in (
        ("memory of the device", needs.device_memory, room.device_memory),
        ("memory", needs.memory, room.memory),
        ("room on the disk of outputs", needs.disk, room.disk),
    ):
        if amount.size > most:
            raise ValueError(
                f"expected to do with {in_units(most)} of {name}, got an experiment that needs at least "
                f"{in_units(amount.size)}; {amount.remedy(most)}"
            )
    if needs.time.size > room.time:
        raise ValueError(
            f"expected an experiment of at most {room.time / 86400:,.0f} days, got one of at least "
            f"{needs.time.size / 86400:,.0f} on the fastest machine there is; "
            f"{needs.time.remedy(room.time)}"
        )


def require_trainable(network: torch.nn.Module, room: Room) -> None:
    """Refuse a network, which may be on the meta device, whose weights, gradients and moments have no room.

    Raises:
        ValueError: the message says how many bytes they take and how many there are.
    """
    size = 4 * FLOAT * sum(parameter.numel() for parameter in network.parameters())
    if size > room.device_memory:
        raise ValueError(
            f"expected a network that {in_units(room.device_memory)} of memory can train, got one whose weights, "
            f"gradients and moments take {in_units(size)}; lower the widths in training.network"
        )


def in_units(size: float) -> str:
    """A number of bytes as a reader expects it, such as 1.5 GiB."""
    power = min(int(math.log(max(size, 1), 1024)), len(UNITS) - 1)
    return f"{size / 1024**power:,.1f} {UNITS[power]}"


def _listed(options: Iterable[str], conjunction: str) -> str:
    """Options in words, such as `images, seeds or sampler.steps`."""
    *names, last = options
    return f"{', '.join(names)} {conjunction} {last}" if names else last
