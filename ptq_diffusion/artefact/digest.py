"""Digests of files and tensors, sixteen hex digits each."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PIECE = 2**20
"""Bytes that are in memory at a time."""


def files_digest(files: Iterable[Path]) -> str:
    """Digest of the contents of some files, one after the other, whatever they are called.

    A process reads them once, as long as no size, modification time or inode changes.
    """
    return _contents_digest(tuple((str(file.absolute()), _state(file)) for file in files))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the names, shapes, dtypes and bits of some tensors, in any order and on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # NumPy has no bfloat16, so every dtype is read as bytes. A clone has the strides that such a view needs, which
        # a tensor of one element may lack.
        row = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        digest.update(row.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _state(file: Path) -> tuple[int, int, int]:
    """Numbers that change when a file is written again or replaced."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns, status.st_ino


@cache
def _contents_digest(files: tuple[tuple[str, tuple[int, int, int]], ...]) -> str:
    digest = hashlib.sha256()
    for name, _ in files:
        with open(name, "rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]
