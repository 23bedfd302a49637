"""Estimates of what an experiment needs at least, and refusals of what cannot fit this machine.

They are bounds from below: of memory and disk only what surely is there at one time counts, of time a rate that no
machine reaches. What passes may still run out; what is refused would have, after hours.
"""

import math
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
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
OPTIONS = {
    "images": ("images", "seeds"),
    "noise": ("noise.images",),
    "calibration": ("calibration.images",),
    "trial": ("trial.images",),
    "layers": ("layers.images",),
}
"""The options that every number of samples grows with."""
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True)
class Amount:
    """An amount of something that is needed at least.

    Args:
        size: bytes, or seconds.
        options: the options that it grows with.
    """

    size: float
    options: str


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

    def options(self, *parts: str, others: Sequence[str] = ()) -> str:
        """The options that some of these numbers grow with, as far as they are not 0, and others, in words."""
        names = [option for part in parts if getattr(self, part) for option in OPTIONS[part]] + list(others)
        return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


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
        conditions: the bytes of all encoded prompts, which are kept in memory.
    """
    sample = math.prod(model.shape)
    architecture = model.architecture()
    widest = max([sample, *(site.macs // math.prod(site.weight_shape[1:]) for site in model.sites() if site.weighted)])
    forward = FLOAT * (architecture.parameters + cfg.micro_batch * widest)
    judged = 3 * drawn.images * (sample + FLOAT * features) + 3 * 8 * features**2 + conditions
    paths = FLOAT * sample * steps * (drawn.calibration + drawn.noise)
    pixels = sample * (3 * drawn.images + drawn.trial)
    compared = SUM * len((POWER, *COLUMNS)) * len(model.sites()) * steps * math.ceil(drawn.layers / AT_ONCE)
    macs = sum(site.macs for site in model.sites()) + architecture.attention_macs
    samplings = 3 * drawn.images + 2 * drawn.noise + drawn.calibration + drawn.trial + 2 * drawn.layers
    rate = FASTEST.get(device.type, FASTEST_ACCELERATOR) * cfg.runtime.devices
    return Needs(
        Amount(forward, "micro_batch and the size of the model"),
        Amount(
            judged + sample * drawn.trial,
            drawn.options("images", "trial", others=["the size of feature.extractor", "the number of prompts"]),
        ),
        Amount(pixels + paths + compared, drawn.options(*OPTIONS)),
        Amount(macs * steps * samplings / rate, drawn.options(*OPTIONS, others=["sampler.steps"])),
    )


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
                f"{in_units(amount.size)}; lower {amount.options}"
            )
    if needs.time.size > room.time:
        raise ValueError(
            f"expected an experiment of at most {room.time / 86400:,.0f} days, got one of at least "
            f"{needs.time.size / 86400:,.0f} on the fastest machine there is; lower {needs.time.options}"
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
