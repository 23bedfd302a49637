"""The artefact store: every stage's result lies under the hash of all that made it."""

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open

from ptq_diffusion.model.unet import folder_checksum
from ptq_diffusion.stage.factory import plain
from ptq_diffusion.stage.runtime import Runtime


class Stage(ABC):
    """One step of the story: from a part of the configuration and earlier artefacts to a folder of files.

    Class attributes:
        name: the folder in the store, and what an experiment's `goal` names.
        version: raised when the meaning of the result changes.
        needs: the stages whose artefacts `make` receives.
        uses: dotted keys of the configuration that `make` is given; it can read no other.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    needs: ClassVar[tuple[type["Stage"], ...]] = ()
    uses: ClassVar[tuple[str, ...]]

    @abstractmethod
    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:
        """Fill the folder `out`, which may hold what an interrupted attempt left.

        Args:
            cfg: the part of the configuration named by `uses`.
            inputs: the artefact folder of each needed stage, by stage name.
            out: an existing folder, renamed into the store when this method returns.
            runtime: devices, progress and loggers: what cannot change the numbers.
        """

    def evidence(self, cfg: DictConfig) -> dict[str, str]:  # noqa: ARG002
        """Checksums of the files outside the store that the stage reads, such as the model's weights."""
        return {}


class ModelStage(Stage):
    """A stage that reads the model's folder, whose contents are part of its signature."""

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"model": folder_checksum(cfg.model.path)}


class Store:
    """Artefacts of all stages below one folder, `<root>/<stage>/<signature>/`, complete or absent.

    Parallel jobs may share a store: the first to need an artefact makes it under a file lock, the others wait.
    """

    def __init__(self, root: Path, runtime: Runtime) -> None:
        self.root, self.runtime = root, runtime
        self.signatures: dict[str, str] = {}
        # Files are read once for each run, which lasts as long as its store.
        self._signatures: dict[str, str] = {}
        self._obtained: dict[tuple[str, str], Path] = {}

    def signature(self, stage: type[Stage], cfg: DictConfig) -> str:
        """Sixteen hex digits over a stage's configuration, files and needs, this package's source, device and torch."""
        given = select(cfg, stage.uses)
        identity = {
            "stage": [stage.name, stage.version],
            "source": package_source(),
            "device": self.runtime.device_type,
            "torch": torch.__version__,
            "config": plain(given),
            "needs": {need.name: self.signature(need, cfg) for need in stage.needs},
        }
        asked = json.dumps(identity, sort_keys=True)
        if asked not in self._signatures:
            text = json.dumps(identity | {"evidence": stage().evidence(given)}, sort_keys=True)
            self._signatures[asked] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._signatures[asked]

    def obtain(self, stage: type[Stage], cfg: DictConfig) -> Path:
        """The folder of the stage's artefact, made now if the store lacks it."""
        signature = self.signature(stage, cfg)
        if (stage.name, signature) not in self._obtained:
            inputs = {need.name: self.obtain(need, cfg) for need in stage.needs}
            self._obtained[stage.name, signature] = self._made(stage, signature, cfg, inputs)
            self.signatures[stage.name] = signature
        return self._obtained[stage.name, signature]

    def _made(self, stage: type[Stage], signature: str, cfg: DictConfig, inputs: Mapping[str, Path]) -> Path:
        final = self.root / stage.name / signature
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_suffix(".lock")):
            if final.is_dir():
                require_readable(final)
                self.runtime.say(f"{stage.name}: reused {signature}")
                return final
            partial = final.with_suffix(".partial")
            partial.mkdir(exist_ok=True)
            self.runtime.say(f"{stage.name}: making {signature}")
            given = select(cfg, stage.uses)
            stage().make(given, inputs, partial, self.runtime)
            write_text(partial / "config.yaml", OmegaConf.to_yaml(given, resolve=True))
            os.replace(partial, final)
        return final

    def has(self, stage: type[Stage], cfg: DictConfig) -> bool:
        """Whether the stage's artefact is there."""
        return (self.root / stage.name / self.signature(stage, cfg)).is_dir()

    def forget(self, stage: type[Stage], cfg: DictConfig) -> None:
        """Remove the stage's artefact, so that the next `obtain` makes it again."""
        final = self.root / stage.name / self.signature(stage, cfg)
        for folder in (final, final.with_suffix(".partial")):
            shutil.rmtree(folder, ignore_errors=True)


def require_readable(artefact: Path) -> None:
    """Refuse an artefact with a file that is cut off or is not what its name says.

    Raises:
        ValueError: there is one; the message names it.
    """
    for file in sorted(artefact.rglob("*")):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_text())
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"expected a whole artefact, got one whose {file.name} is broken ({error}); "
                f"remove the folder {artefact} and it is made again"
            ) from error


@cache
def package_source() -> str:
    """A digest of this package's code: results of other code are other results."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()


def select(cfg: DictConfig, keys: tuple[str, ...]) -> DictConfig:
    """A configuration that holds only the given dotted keys, interpolations resolved.

    Raises:
        ValueError: a key is missing from the configuration.
    """
    chosen = OmegaConf.create({})
    for key in keys:
        value = OmegaConf.select(cfg, key, throw_on_missing=True, default=KeyError)
        if value is KeyError or value is None:
            group = key.partition(".")[0]
            raise ValueError(
                f"expected {key!r} in the configuration, which this goal needs; choose one, such as {group}=NAME "
                "(ptq-diffusion --help lists the names)"
            )
        OmegaConf.update(chosen, key, plain(value) if OmegaConf.is_config(value) else value, force_add=True)
    return chosen


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside it first, then renamed."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    os.replace(beside, path)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
