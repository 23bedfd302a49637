"""Networks whose blocks lie in the host's memory or in files, and come to the device for their own forward alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ptq_diffusion.model import Denoiser
from ptq_diffusion.network.backend.integer_layer import IntegerLayer
from ptq_diffusion.network.integers import StoredWeight


def lend_by_block(denoiser: Denoiser) -> None:
    """Offload a network block by block: each call of a block copies its tensors to the device of its input.

    From then on `.to` moves all but the blocks. The copies, and what was unpacked of them, are dropped after a call.
    Numbers are those of a network that was moved whole.
    Autograd keeps the copies that a backward pass needs, so that memory is bounded without gradients alone.

    Args:
        denoiser: float or quantized; its network is changed. One that names no blocks is left as it is.
    """
    if names := denoiser.blocks():
        lend_blocks(denoiser, [denoiser.network.get_submodule(name) for name in names])


def lend_blocks(owner: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Offload some blocks of a module, see `lend_by_block`.

    Args:
        owner: the module, which is changed.
        blocks: modules within it, none within another.
    """
    for block in blocks:
        # As torch's parametrizations do it: names, attributes and the kind of the module stay as they are.
        block.__class__ = _lent_kind(type(block))
    # All others move into memory: products of few rows depend in last bits on where a mapped file has a tensor begin.
    owner._apply(torch.clone)


class Lent(nn.Module):
    """Mixed into the class of a block: its tensors are copied to the device of its input for each call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        # What is traced has no numbers to copy.
        if torch.compiler.is_exporting():
            return super().__call__(*args, **kwargs)
        with self._lent_to(next(leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))):
            return super().__call__(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> "Lent":  # noqa: ANN401, ARG002
        """The tensors stay where they are, whatever else of the network moves."""
        return self

    @contextmanager
    def _lent_to(self, device: torch.device) -> Iterator[None]:
        """Within this context all tensors of the block are copies on a device."""
        places: list[dict[str, Any]] = [
            tensors for module in self.modules() for tensors in (module._parameters, module._buffers)
        ]
        homes = [dict(tensors) for tensors in places]
        self._forget()
        try:
            for tensors in places:
                # Also on the device itself: a tensor that is mapped from a file would be read from it at every use.
                tensors |= {
                    name: None if tensor is None else tensor.to(device, copy=True) for name, tensor in tensors.items()
                }
            yield
        finally:
            for tensors, home in zip(places, homes, strict=True):
                tensors |= home
            self._forget()

    def _forget(self) -> None:
        for module in self.modules():
            if isinstance(module, StoredWeight | IntegerLayer):
                module.forget()


def _lent_kind(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (Lent, kind), {})
