"""Digests of tensors and files, which identify what they hold."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits over the names and bytes of tensors of any dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # A clone has the strides that a view of bytes needs, which a tensor of one element may lack.
        row = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        digest.update(row.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
