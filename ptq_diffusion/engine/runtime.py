"""Settings of a run beside its configuration: devices, progress, loggers, arithmetic."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track as rich_track
from torch.multiprocessing.spawn import ProcessRaisedException

from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.ranks import PATIENCE, Ranks
from ptq_diffusion.engine.synchronisation import error_of, text_in

Item = TypeVar("Item")
TF32 = "NVIDIA_TF32_OVERRIDE"
"""The variable of the environment by which CUDA's libraries take TensorFloat-32 or not, whatever torch tells them."""
BY_BLOCK = "block"
OFFLOADS = ("none", BY_BLOCK)
"""Ways to keep a network: whole on its device, or its blocks outside, see `engine.memory.lending`."""
PROCESSES_PER_CORE = 2
"""More processes than that on a processor slow each other and fill the memory."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
"""Words for the kind of device. Apple's MPS is none of them: it has no float64, in which histograms and moments are."""


def device_type_of(accelerator: str) -> str:
    """The device type that a word for an accelerator comes to on this machine, cuda or cpu.

    AMD's GPUs are cuda too, as torch has it.
    """
    if accelerator == "cpu":
        return "cpu"
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cuda" if found is not None and found.type == "cuda" else "cpu"


@dataclass
class Runtime:
    """How to run; only the device type and `arithmetic` are in signatures.

    Args:
        accelerator: the kind of device, one of `ACCELERATORS`; auto is a GPU where there is one, or the CPU.
        progress: whether to draw progress bars.
        devices: how many share the work on samples and layers; training, and roundings of whole blocks, take the first.
        loggers: Lightning loggers that training reports to.
        console: where messages go.
        log: a file that keeps every message with its time, once there is a folder for it.
        ranks: processes that were started with the same command and share the work on samples, if any.
        offload: whether networks are whole on their device, `none`, or come to it block by block, `block`.

    Raises:
        ValueError: no such device type or offload, or this machine has none of it, devices beside ranks, or more
            processes than a processor has use for.
    """

    accelerator: str
    progress: bool
    devices: int = 1
    loggers: Sequence[Logger] = ()
    console: Console = field(default_factory=Console)
    log: Path | None = None
    ranks: Ranks | None = None
    offload: str = "none"

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            because = ", which has no float64 for statistics" if self.accelerator == "mps" else ""
            words = ", ".join(ACCELERATORS)
            raise ValueError(
                f"expected runtime.accelerator {words}, got {self.accelerator!r}{because}; use auto or cpu"
            )
        if self.offload not in OFFLOADS:
            raise ValueError(f"expected runtime.offload {' or '.join(OFFLOADS)}, got {self.offload!r}")
        if self.ranks is not None and self.devices > 1:
            raise ValueError(
                f"expected one process of torchrun or srun for each device, got runtime.devices={self.devices} beside; "
                "leave runtime.devices out"
            )
        if self.accelerator not in ("auto", "cpu") and self.device_type == "cpu":
            raise ValueError(
                "expected a machine with a GPU that torch uses through CUDA or ROCm, found none for "
                f"runtime.accelerator={self.accelerator}; use auto or cpu"
            )
        if self.device_type == "cpu" and self.devices > (most := PROCESSES_PER_CORE * (os.cpu_count() or 1)):
            raise ValueError(
                f"expected at most {most} processes on the {most // PROCESSES_PER_CORE} cores of this processor, got "
                f"runtime.devices={self.devices}; lower it"
            )

    @classmethod
    def of_options(cls, options: DictConfig, console: Console | None = None, ranks: Ranks | None = None) -> "Runtime":
        """The runtime of the options `runtime` of a configuration.

        Args:
            options: accelerator, progress, devices, offload.
            console: where messages go; None for the standard output.
            ranks: see `Runtime`.

        Raises:
            ValueError: see `Runtime`.
        """
        console = Console() if console is None else console
        words = options.accelerator, options.progress, options.devices
        return cls(*words, console=console, ranks=ranks, offload=options.offload)

    @property
    def device_type(self) -> str:
        """The device type that `accelerator` comes to: cpu or cuda."""
        return device_type_of(self.accelerator)

    @property
    def device(self) -> torch.device:
        """The first device."""
        return torch.device("cpu") if self.device_type == "cpu" else torch.device(self.device_type, 0)

    @property
    def arithmetic(self) -> Mapping[str, object]:
        """Settings of torch and of CUDA's libraries that change last bits."""
        override = os.environ.get(TF32) if self.device_type == "cuda" else None
        return {
            "threads": torch.get_num_threads(),
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
            "dtype": str(torch.get_default_dtype()),
        } | ({} if override is None else {TF32: override})

    def __reduce__(self) -> tuple[Callable[..., "Runtime"], tuple[str, bool, int]]:
        """Other processes have no console, log and loggers of this one."""
        return partial(Runtime, offload=self.offload), (self.accelerator, self.progress, self.devices)

    def say(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")

    def track(self, items: Iterable[int]) -> Iterable[int]:
        """The items, with a progress bar while they are gone through."""
        return rich_track(items, "bootstrap", console=self.console) if self.progress else items

    def sharers(self, tasks: int) -> int:
        """The number of devices that `launch` gives so many tasks something to do on."""
        return min(self.devices if self.ranks is None else self.ranks.count, tasks)

    def launch(self, function: Callable[[Fabric], None], tasks: int) -> None:
        """Call `function(fabric)` once for each device, at most `tasks` of them, and wait for all.

        One device is used in this process. For several, each has a process that starts afresh and is given the function
        pickled: a partial of one that it imports by name. So only this process holds the store's locks, writes to the
        console and goes on to the next stage. Lightning's usual launcher runs the whole command again in every process,
        which must then meet at the same stage: under Hydra each would compose the job again, a sweep would start over,
        and all would wait for a lock that the first holds. Forked processes could not use a GPU that this one has
        touched. When this process dies, Linux interrupts the others.

        Where processes were started with the same command, see `Ranks`, all of them are used instead.

        Raises:
            ValueError: fewer than one device is asked for.
            Exception: it failed in another process, see `error_of`. What it raises in this one passes through.
        """
        if self.devices < 1:
            raise ValueError(f"expected runtime.devices of at least 1, got {self.devices}")
        if self.ranks is not None and tasks > 1:
            self.ranks.call(function)
            return
        devices = min(self.devices, tasks)
        # Objects are exchanged and no tensors, for which gloo serves on every device.
        several = DDPStrategy(start_method="spawn", process_group_backend="gloo", timeout=PATIENCE)
        fabric = Fabric(accelerator=self.device_type, devices=devices, strategy=several if devices > 1 else "auto")
        try:
            fabric.launch(Quiet(function) if devices > 1 else function)
        except ProcessRaisedException as failure:
            # Of an error of another process, torch hands on its printed traceback alone.
            raise error_of(failure.error_index, text_in(failure.msg)) from failure

    def trainer(
        self,
        folder: Path,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        **options: Any,  # noqa: ANN401
    ) -> L.Trainer:
        """A Lightning trainer on this device; `options` go to it as they are."""
        bar: list[Callback] = [RichProgressBar()] if self.progress else []
        return L.Trainer(
            accelerator=self.device_type,
            devices=1,
            logger=list(loggers),
            callbacks=[*bar, *callbacks],
            enable_progress_bar=self.progress,
            enable_model_summary=False,
            default_root_dir=folder,
            **options,
        )


@dataclass(frozen=True)
class Quiet:
    """A function for other processes, where libraries are quiet from its arrival on, before Lightning connects them.

    From then on freed memory stays with the process too, as in the first one.

    Args:
        function: is given what this one is called with.
    """

    function: Callable[[Fabric], None]

    def __call__(self, fabric: Fabric) -> None:
        self.function(fabric)

    def __reduce__(self) -> tuple[Callable[..., "Quiet"], tuple[Callable[[Fabric], None]]]:
        return _arrived, (self.function,)


def _arrived(function: Callable[[Fabric], None]) -> Quiet:
    quiet_libraries()
    # Options of the allocator are those of one process.
    keep_freed_memory()
    return Quiet(function)


def track(items: Sequence[Item], title: str, progress: bool) -> Iterable[Item]:
    """The items, with a progress bar of this title while they are gone through."""
    return rich_track(items, title) if progress else items


def quiet_libraries() -> None:
    """Leave the console to progress bars and results: no advice from libraries, no deprecations inside them."""
    # fontTools tells of every table of a font that a PDF takes along, by the logging of a sweep.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Tells at length what it could do with torchvision.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Tells of every process that it ends because another one has failed, of which we tell.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*IterableDataset.*__len__.*")
    warnings.filterwarnings("ignore", message=".*predict returned None.*")
