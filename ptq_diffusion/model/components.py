"""Components of model folders: the files of one network, its configuration and its weights."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
"""The beginning of the names of all files of weights."""


@dataclass(frozen=True)
class Component:
    """The files that are read of one network.

    Args:
        config: its configuration.
        weights: one file, or all shards; none where nobody reads them.
        index: of shards, the file that names them; None of a single file.
    """

    config: Path
    weights: tuple[Path, ...]
    index: Path | None

    @property
    def files(self) -> list[Path]:
        """All of them, the configuration first."""
        return [self.config, *([self.index] if self.index else []), *self.weights]


def find_component(home: Path) -> Component | list[Path]:
    """The files of the network in a folder, or those that are missing there.

    Weights without a variant come before those of a variant such as fp16.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: it is not clear which weights are meant, or an index is broken.
    """
    config, weights = home / CONFIG, _choose_weights(home)
    missing = [] if config.is_file() else [config]
    if weights is None:
        return [*missing, home / f"{WEIGHTS}.safetensors"]
    if missing:
        return missing
    sharded = weights.suffix == ".json"
    return Component(config, _shards(weights) if sharded else (weights,), weights if sharded else None)


def find_configuration(home: Path) -> Component | list[Path]:
    """The network in a folder by its configuration alone, or the file that is missing there."""
    config = home / CONFIG
    return Component(config, (), None) if config.is_file() else [config]


def shard_names(index: Path) -> Mapping[str, str]:
    """The file of every weight, by the weight's name, as an index of shards has it.

    Raises:
        ValueError: the index is broken, or it names files that are not safetensors beside it.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"expected a weight_map of names of files in {index}, got another; save the pipeline again")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"expected {index} to name safetensors files beside it, got {name}, which is not opened; save the "
                "pipeline again with safe_serialization=True"
            )
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object of a json file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); save the pipeline again") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}; save the pipeline again")
    return content


def unread_weights(home: Path) -> str:
    """Files that look like weights under names or in forms that are not read, in words."""
    names = sorted(file.name for ending in ("bin", "safetensors", "ckpt", "pt") for file in home.glob(f"*.{ending}"))
    return f" (not read: {', '.join(names)})" if names else ""


def _choose_weights(home: Path) -> Path | None:
    """The file of weights or the index of shards: one without a variant, else the only one of a variant."""
    plain = [home / f"{WEIGHTS}.safetensors", home / f"{WEIGHTS}.safetensors.index.json"]
    candidates = [file for file in plain if file.is_file()]
    if not candidates:
        # A variant stands before the ending; shards, whose names end in numbers, are chosen by their index alone.
        singles = [file for file in home.glob(f"{WEIGHTS}.*.safetensors") if not re.search(r"-\d+-of-\d+", file.name)]
        candidates = sorted([*singles, *home.glob(f"{WEIGHTS}.safetensors.index.*.json")])
    if len(candidates) > 1:
        raise ValueError(
            f"expected one set of weights in {home}, got {', '.join(file.name for file in candidates)}; keep one in a "
            "copy of the folder"
        )
    return candidates[0] if candidates else None


def _shards(index: Path) -> tuple[Path, ...]:
    shards = tuple(index.with_name(name) for name in sorted(set(shard_names(index).values())))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(
            f"expected the shards that {index} names, {index.parent} lacks {', '.join(missing)}; fetch them or save "
            "the pipeline again"
        )
    return shards
