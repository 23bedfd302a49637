"""The artefact store: every stage's result lies under the hash of all that made it."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import diffusers
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.artefact.files import (
    MANIFEST,
    check_whole,
    replace,
    sync_folder,
    writable,
    write_manifest,
    write_text,
)
from ptq_diffusion.engine.factory import plain, targets
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.source import OURS
from ptq_diffusion.engine.stage import Need, Stage


class Store:
    """Artefacts of all stages below one folder, `<root>/<stage>/<signature>/`, complete or absent.

    A stage fills `<signature>.partial`, which any interruption leaves for the next attempt to go on from. When it holds
    everything, a manifest of its files is written, all of it is brought to the disk, and it gets its name. Parallel
    jobs may share a store: the first to need an artefact makes it under a file lock, which dies with its process.

    Args:
        root: the folder.
        runtime: how to run.
        forced: names of stages whose artefacts are made anew, each once by this store.
    """

    def __init__(self, root: Path, runtime: Runtime, forced: Collection[str] = ()) -> None:
        self.root, self.runtime, self.forced = root, runtime, forced
        self.signatures: dict[str, str] = {}
        # Files are read once for each run, which lasts as long as its store.
        self._signatures: dict[str, str] = {}
        self._obtained: dict[tuple[str, str], Path] = {}

    def signature(self, stage: type[Stage], cfg: DictConfig) -> str:
        """Sixteen hex digits over a stage's configuration, files and needs, the source it runs, device, libraries."""
        given = select(cfg, stage.uses)
        identity = {
            "stage": [stage.name, stage.version],
            "source": source(stage, given),
            "device": self.runtime.device_type,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "config": same_numbers(plain(given)),
            "needs": {name: self.signature(need.stage, need.cfg) for name, need in stage().inputs(cfg).items()},
        }
        asked = json.dumps(identity, sort_keys=True)
        if asked not in self._signatures:
            text = json.dumps(identity | {"evidence": stage().evidence(given)}, sort_keys=True)
            self._signatures[asked] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._signatures[asked]

    def obtain(self, stage: type[Stage], cfg: DictConfig, role: str = "") -> Path:
        """The folder of the stage's artefact, made now if the store lacks it.

        Args:
            stage: which makes it.
            cfg: the whole configuration.
            role: what it is to be called beside its stage, such as the candidate that a fit is of.

        Raises:
            ValueError: a file of the artefact is missing or has another size than when it was made.
            OSError: the store's disk is full or cannot be written; what was finished is kept.
        """
        signature = self.signature(stage, cfg)
        if (stage.name, signature) not in self._obtained:
            inputs = {name: self._input(name, need) for name, need in stage().inputs(cfg).items()}
            title = f"{stage.name} of {role}" if role else stage.name
            self._obtained[stage.name, signature] = self._made(stage, signature, cfg, inputs, title)
            self.signatures[stage.name] = signature
        return self._obtained[stage.name, signature]

    def _input(self, name: str, need: Need) -> Path:
        try:
            return self.obtain(need.stage, need.cfg, role="" if name == need.stage.name else name)
        except ValueError as error:
            if need.remedy:
                raise ValueError(f"of {name}: {error}; or {need.remedy}") from error
            raise

    def _made(
        self, stage: type[Stage], signature: str, cfg: DictConfig, inputs: Mapping[str, Path], title: str
    ) -> Path:
        final = self.root / stage.name / signature
        partial = final.with_suffix(".partial")
        forced = stage.name in self.forced
        with writable(final.parent), FileLock(final.with_suffix(".lock")):
            if final.is_dir() and not forced:
                check_whole(final)
                self.runtime.say(f"{title}: reused {signature}")
                return final
            if forced:
                shutil.rmtree(partial, ignore_errors=True)
            begun = partial.is_dir() and any(partial.iterdir())
            partial.mkdir(exist_ok=True)
            self.runtime.say(f"{title}: {'going on with' if begun else 'making'} {signature}")
            self._fill(stage, partial, cfg, inputs)
            replace(partial, final)
        return final

    def _fill(self, stage: type[Stage], partial: Path, cfg: DictConfig, inputs: Mapping[str, Path]) -> None:
        """Make everything in `partial` and bring it to the disk, unless an attempt came as far as its manifest."""
        if not (partial / MANIFEST).is_file():
            given = select(cfg, stage.uses)
            stage().make(given, inputs, partial, self.runtime)
            write_text(partial / "config.yaml", OmegaConf.to_yaml(given, resolve=True))
            for left in partial.rglob("*.tmp"):
                if left.is_file():
                    left.unlink()
            write_manifest(partial, stage.scratch)
        for name in stage.scratch:
            shutil.rmtree(partial / name, ignore_errors=True)
        sync_folder(partial)

    def has(self, stage: type[Stage], cfg: DictConfig) -> bool:
        """Whether the stage's artefact is there."""
        return (self.root / stage.name / self.signature(stage, cfg)).is_dir()


def source(stage: type[Stage], given: DictConfig) -> str:
    """A digest of the source that a stage runs: its module, what its configuration names, and all that they import."""
    named = (OURS.defining(target) for target in targets(plain(given)))
    return OURS.digest([Path(inspect.getfile(stage)), *(file for file in named if file)])


def same_numbers(node: object) -> object:
    """A plain configuration in which 1.0 and 1, which are one value of an option, are written alike."""
    if isinstance(node, dict):
        return {key: same_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [same_numbers(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


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
