"""Signatures of artefacts: hashes of all that can change their numbers."""

import hashlib
import inspect
import json
import weakref
from pathlib import Path
from typing import Any

import diffusers
import torch
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.engine.code.source import OURS, Definition
from ptq_diffusion.engine.factory import plain, targets
from ptq_diffusion.engine.plugins import Plugin, plugins_of
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.selection import same_numbers, select, selected
from ptq_diffusion.engine.stage import Stage, needed
from ptq_diffusion.engine.workshop import Workshop


class Signatures:
    """Signatures of one run, each computed once for a stage and the values of the options that it and its needs use.

    A configuration is read when a signature of it is first asked for, and is not to be changed afterwards.

    Args:
        runtime: how artefacts are made.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._known: dict[str, str] = {}
        # A run asks ten times for each signature, and collecting the options of a stage constructs parts of it.
        self._asked: dict[tuple[str, int], tuple[weakref.ref[DictConfig], str]] = {}

    def of(self, stage: type[Stage], cfg: DictConfig) -> str:
        """Sixteen hex digits over a stage's configuration, files and needs, the source it runs, device, libraries."""
        asked, signature = self._asked.get((stage.name, id(cfg)), (None, ""))
        # `id` may belong to another configuration once the first one is deleted.
        if asked is None or asked() is not cfg:
            signature = self._of_content(stage, cfg)
            self._asked[stage.name, id(cfg)] = weakref.ref(cfg), signature
        return signature

    def _of_content(self, stage: type[Stage], cfg: DictConfig) -> str:
        cfg = stage.made_of(cfg)
        key = json.dumps([stage.name, options_read(stage, cfg)])
        if key not in self._known:
            self._known[key] = self.computed(stage, cfg)
        return self._known[key]

    def computed(self, stage: type[Stage], cfg: DictConfig) -> str:
        """The signature, computed now from those of the stage's needs."""
        selection = select(cfg, stage.uses, stage.unread)
        counted = selected(cfg, stage.uses, (*stage.unread, *stage.places))
        identity = {
            "stage": [stage.name, stage.version],
            "source": source(stage, selection),
            "device": self.runtime.device_type,
            "arithmetic": self.runtime.arithmetic,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "config": same_numbers(counted),
            "needs": {name: self.of(need.stage, need.cfg) for name, need in stage().inputs(cfg).items()},
            "evidence": stage().evidence(selection),
        }
        if plugins := [Plugin.of(name).identity for name in plugins_of(selection)]:
            identity["plugins"] = plugins
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def source(stage: type[Stage], selection: DictConfig) -> str:
    """A digest of the source that a stage runs on a part of the configuration; that of plugins has one of its own."""
    beside = {file for name in plugins_of(selection) for file in Plugin.of(name).files}
    ran = closure(stage, selection)
    return OURS.digest(frozenset(each for each in ran if each.file not in beside) if beside else ran)


def closure(stage: type[Stage], selection: DictConfig) -> frozenset[Definition]:
    """The definitions that a stage may run: its own, those that its configuration names, and all that they lead to.

    It begins at `make`: what `evidence` returns is in the signature itself. Other stages are left out: their artefacts
    are read, they are not run, and their source is in their signatures. Of a plugin all may run.
    """
    named = targets(plain(selection))
    configured = [definition for target in named if (definition := OURS.defining(target))]
    others = [_definition(other) for other in {*needed(stage)} - {stage}]
    methods = {"make", *(target.rpartition(".")[2] for target in named)}
    beside = [each for name in plugins_of(selection) for file in Plugin.of(name).files for each in OURS.within(file)]
    return OURS.closure([_definition(stage), _definition(Workshop), *configured, *beside], methods, others)


def _definition(kind: type) -> Definition:
    defining = OURS.defining(f"{kind.__module__}.{kind.__name__}")
    return defining or Definition(Path(inspect.getfile(kind)), kind.__name__)


def options_read(stage: type[Stage], cfg: DictConfig) -> Any:  # noqa: ANN401
    """The values, by dotted key, of the options that a stage uses and its needs use, except needs that do not serve."""
    keys = sorted({key for serving in _serving(stage, cfg) for key in serving.uses})
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    return {key: plain(value) if OmegaConf.is_config(value) else value for key, value in values.items()}


def _serving(stage: type[Stage], cfg: DictConfig) -> set[type[Stage]]:
    serving, ahead = set[type[Stage]](), [stage]
    while ahead:
        one = ahead.pop()
        serving.add(one)
        ahead += [need for need in one.needs if need not in serving and need.serves(cfg)]
    return serving
