"""Checksums of models: of a pipeline's folder, or of a network of the user's own by its weights."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.engine.factory import construct, plain, require_kind
from ptq_diffusion.engine.plugins import OUR_PACKAGE, PLUGINS, plugins_of
from ptq_diffusion.model import Denoiser, decoder
from ptq_diffusion.model.loading import network_checksum
from ptq_diffusion.model.own import decoder_of

FROM_FOLDER = "from_folder"
"""The name of what reads a folder that a diffusers pipeline saved."""


def of_folder(cfg: DictConfig) -> bool:
    """Whether the model is read from a folder of a pipeline, rather than a network of the user's own."""
    package, *_, name = str(cfg.model.get("_target_")).split(".")
    return package == OUR_PACKAGE and name == FROM_FOLDER


def model_checksum(cfg: DictConfig) -> str:
    """Sixteen hex digits over the weights of the model that `cfg.model` names, and over a folder's configurations.

    The decoder is left out: states do not depend on it.
    """
    return network_checksum(cfg.model.path) if of_folder(cfg) else _own_checksums(cfg)[0]


def decoder_checksum(cfg: DictConfig) -> str:
    """Sixteen hex digits over all that decides the images of states, or the name of a decoder without weights."""
    return decoder.decoder_checksum(cfg.model.path) if of_folder(cfg) else _own_checksums(cfg)[1]


def build_model(node: Mapping[str, Any], plugins: Sequence[str] = ()) -> Denoiser:
    """The denoiser of a plain configuration, such as an artefact holds of a network of the user's own.

    Raises:
        ValueError: it names a class of a package that is none of these, or see `construct`.
    """
    model = OmegaConf.create({"model": dict(node), PLUGINS: list(plugins)}).model
    require_kind(model, Denoiser, "model")
    denoiser: Denoiser = construct(model)
    return denoiser


def _own_checksums(cfg: DictConfig) -> tuple[str, str]:
    node = plain(cfg.model)
    return _checksums(json.dumps(node), plugins_of(cfg), tuple(_states(node)))


@cache
def _checksums(node: str, plugins: Sequence[str], states: tuple[object, ...]) -> tuple[str, str]:  # noqa: ARG001
    """Checksums of the network and its decoder, taken again when a file that an option names was written again."""
    model = build_model(json.loads(node), plugins)
    return model.fingerprint(), decoder_of(model).checksum


def _states(node: object) -> Iterator[tuple[str, int, int, int]]:
    """Numbers that change when a file below a path among the values of some options is written again."""
    if isinstance(node, dict | list):
        for part in node.values() if isinstance(node, dict) else node:
            yield from _states(part)
    elif isinstance(node, str) and os.path.exists(node):
        for file in [Path(node)] if os.path.isfile(node) else sorted(Path(node).rglob("*")):
            status = file.stat()
            yield str(file), status.st_size, status.st_mtime_ns, status.st_ino
