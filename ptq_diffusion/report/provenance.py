"""The origin of a report's numbers beside its configuration: code, time, command, machine and libraries."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from ptq_diffusion import __version__
from ptq_diffusion.engine.plugins import Plugin
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store

LIBRARIES = ("torch", "diffusers", "lightning", "hydra-core", "numpy", "safetensors")
PACKAGE = Path(__file__).parents[1]


def provenance(store: Store) -> Mapping[str, Any]:
    """The fields of report.json that tell where its numbers come from; none of them is in a signature.

    Returns:
        commit: of the checkout that the package lies in, with +changes where files differ from it; None elsewhere.
        date: when the report was written, ISO 8601 with the time zone.
        command, overrides: the words of the process, and those that Hydra composed the run from.
        host, device, device_name: the machine, its kind of device and that device's name.
        seconds: of every stage, by its title: how long making its artefact took, its inputs apart, in the process that
            did; None where the store does not know.
        versions: of this package, Python and the libraries.
        plugins: the packages of the user's own that the run names, with version and digest.
    """
    versions = {"ptq-diffusion": __version__, "python": platform.python_version()}
    return {
        "commit": commit(PACKAGE.parent),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
        "host": platform.node(),
        "device": store.runtime.device_type,
        "device_name": device_name(store.runtime),
        "seconds": dict(store.seconds),
        "versions": versions | {name: version(name) for name in LIBRARIES},
        "plugins": [Plugin.of(name).identity for name in store.shop.plugins],
    }


def commit(folder: Path) -> str | None:
    """The commit of the git checkout whose top is `folder`, with +changes; None where it is none or git is missing."""
    if not (folder / ".git").exists():
        return None
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}+changes" if changes else revision


def device_name(runtime: Runtime) -> str:
    """The name of the first device, such as that of a GPU; of a CPU its model where the system tells it."""
    if runtime.device_type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if runtime.device_type == "cpu" and information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    ended = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return ended.stdout.strip()
