"""Training checkpoints without pickle: tensors in safetensors, everything else in JSON."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from safetensors.torch import load_file, save_file

from ptq_diffusion.artefact.files import sync_folder


class SafetensorsCheckpointIO(CheckpointIO):
    """A Lightning checkpoint as a folder of `tensors.safetensors` and `state.json`; reading it runs no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401, ARG002
        tensors: dict[str, torch.Tensor] = {}
        state = _to_json(checkpoint, "", tensors)
        folder, beside = Path(path), Path(f"{path}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(tensors, beside / "tensors.safetensors")
        (beside / "state.json").write_text(json.dumps(state))
        sync_folder(beside)
        # A kill between the two renames leaves the old one, which `present` finds.
        if folder.exists():
            shutil.rmtree(f"{path}.old", ignore_errors=True)
            os.replace(folder, f"{path}.old")
        os.replace(beside, folder)
        shutil.rmtree(f"{path}.old", ignore_errors=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,  # noqa: ANN401, ARG002
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        folder = present(path)
        if folder is None:
            raise FileNotFoundError(f"expected a checkpoint at {path}, found none")
        return _from_json(json.loads((folder / "state.json").read_text()), load_file(folder / "tensors.safetensors"))

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def present(path: str | Path) -> Path | None:
    """The checkpoint at a path, or the one before it where saving was interrupted; None where there is neither."""
    return next((folder for folder in (Path(path), Path(f"{path}.old")) if folder.is_dir()), None)


def _to_json(value: object, name: str, tensors: dict[str, torch.Tensor]) -> object:
    """JSON with every tensor replaced by its name; dicts become lists of pairs, so integer keys survive."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _to_json(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return [_to_json(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"expected plain values and tensors in a checkpoint, got {type(value).__name__} at {name}")


def _from_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _from_json(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_from_json(item, tensors) for item in value]
    return value
