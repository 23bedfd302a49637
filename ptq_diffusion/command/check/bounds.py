"""Estimates of what an experiment needs at least, and refusals of what cannot fit this machine.

They are bounds from below: of memory and disk only what surely is there at one time counts, of time a rate that no
machine reaches. What passes may still run out; what is refused would have, after hours.
"""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from ptq_diffusion.model import Denoiser

FLOAT = 4
"""Bytes of a number of the network."""
FASTEST = {"cpu": 1e13}
FASTEST_ACCELERATOR = 2e15
"""Multiply-accumulates a second that no device of today does."""
LONGEST = 60 * 24 * 3600
"""Seconds that nobody waits for, 60 days."""
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


def needs(
    cfg: DictConfig, model: Denoiser, steps: int, features: int, device: torch.device, conditions: int = 0
) -> Needs:
    """The least that an experiment needs.

    Args:
        cfg: its configuration.
        model: the float model.
        steps: of the sampler.
        features: the length of a feature vector.
        device: where networks run.
        conditions: the bytes of all encoded prompts, which are kept in memory.
    """
    sample, drawn = math.prod(model.shape), cfg.images * len(cfg.seeds)
    architecture = model.architecture()
    widest = max([sample, *(site.macs // math.prod(site.weight_shape[1:]) for site in model.sites() if site.weighted)])
    forward = FLOAT * (architecture.parameters + cfg.micro_batch * widest)
    judged = 3 * drawn * (sample + FLOAT * features) + 3 * 8 * features**2 + conditions
    paths = FLOAT * sample * steps * (cfg.calibration.images + cfg.noise.images)
    macs = sum(site.macs for site in model.sites()) + architecture.attention_macs
    forwards = steps * (3 * drawn + 2 * cfg.noise.images + cfg.calibration.images)
    rate = FASTEST.get(device.type, FASTEST_ACCELERATOR) * cfg.runtime.devices
    return Needs(
        Amount(forward, "micro_batch and the size of the model"),
        Amount(judged, "images, seeds, the size of feature.extractor and the number of prompts"),
        Amount(3 * drawn * sample + paths, "images, seeds, noise.images and calibration.images"),
        Amount(macs * forwards / rate, "images, seeds and sampler.steps"),
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
