"""Measurements that a bitwidth policy may ask for, and the files that hold them."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.tensors import write_tensors

KEY = "evidence"


class Evidence(Enum):
    """The kind of measurement that a policy reads."""

    NOTHING = "nothing"
    STEP_SNR = "step_snr"
    SENSITIVITY = "sensitivity"


def save_evidence(
    path: Path, kind: Evidence, version: int, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write tensors as safetensors, with what they are in the metadata."""
    described = {"kind": kind.value, "version": version} | dict(fields)
    write_tensors(path, tensors, {KEY: json.dumps(described, allow_nan=False)})


def load_evidence(path: Path, kind: Evidence, version: int) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The tensors and fields that `save_evidence` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or holds another kind of measurement, or one of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})[KEY])
        tensors = load_file(path)
        label = (fields["kind"], fields["version"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a measurement of {kind.value} in {path}, got another file ({type(error).__name__}: {error}); "
            "measure again"
        ) from error
    if label != (kind.value, version):
        raise ValueError(
            f"expected a measurement of {kind.value} of version {version} in {path}, got {label[0]} of version "
            f"{label[1]}; measure again"
        )
    return tensors, fields


def require_origin(what: str, measured: tuple[str, str], present: tuple[str, str]) -> None:
    """Refuse a measurement of another network or table; both are (network, table) fingerprints.

    Raises:
        ValueError: they differ.
    """
    for part, origin, current in zip(("network", "table"), measured, present, strict=True):
        if origin != current:
            raise ValueError(
                f"expected {what} of {part} {current}, got that of another {part}, {origin}; measure again"
            )
