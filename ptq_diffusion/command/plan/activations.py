"""Bytes of the tensors of a forward, followed on the meta device from their making to their freeing."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.macs import layers_of

META = torch.device("meta")


class LiveBytes(TorchDispatchMode):
    """Within this context the bytes of all tensors that operators make are followed until they are freed.

    Attributes:
        most: the largest sum of bytes that lived at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401, ARG002
        args: Any = (),  # noqa: ANN401
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        # A view of a parameter takes no memory, though its storage was never made here.
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given:
                self._enter(storage)
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            self.most = max(self.most, self._live)
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FusedAttention(TorchFunctionMode):
    """Within this context attention makes its output alone, as the fused kernels of CPUs and GPUs do."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401, ARG002
        args: Any = (),  # noqa: ANN401
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        options = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **options)
        tensors = dict(zip(("query", "key", "value"), args, strict=False)) | options
        query, value = tensors["query"], tensors["value"]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


@dataclass(frozen=True)
class AnyStep:
    """A row of a table whose numbers do not matter.

    Args:
        t: a time, () on the meta device.
        i: the row.
        input_scale: of the state.
    """

    t: Any
    i: int = 0
    input_scale: float = 1.0


def forward_bytes(model: Denoiser, rows: int, quantized: bool = False, gradients: bool = False) -> int:
    """The most bytes that live at one time in a forward, the state and the condition included.

    Args:
        model: on the meta device.
        rows: of the batch.
        quantized: whether the input of every layer is put on a grid first.
        gradients: whether all is kept that gradients by the state need.
    """
    with torch.set_grad_enabled(gradients), ExitStack() as stack:
        if quantized:
            stack.enter_context(_quantized_inputs(model.network))
        # Made outside: it counts as the copy that the network sees of it, scaled.
        x_t = torch.zeros(rows, *model.shape, device=META).requires_grad_(gradients)
        live = stack.enter_context(LiveBytes())
        stack.enter_context(FusedAttention())
        model.predict(x_t, AnyStep(torch.zeros((), device=META)), model.blank_condition(rows, META))
    return live.most


def call_bytes(model: Denoiser, names: Sequence[str]) -> int:
    """The most bytes of the arguments and outputs of a call of one of some modules, in a forward of one row.

    Args:
        model: on the meta device.
        names: of the modules.
    """
    sizes = [0]

    def see(_: nn.Module, positional: object, named: object, output: object) -> None:
        tensors = (leaf for leaf in tree_leaves((positional, named, output)) if isinstance(leaf, Tensor))
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    with torch.no_grad(), ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.network.get_submodule(name).register_forward_hook(see, with_kwargs=True))
        x_t = torch.zeros(1, *model.shape, device=META)
        model.predict(x_t, AnyStep(torch.zeros((), device=META)), model.blank_condition(1, META))
    return max(sizes)


@contextmanager
def _quantized_inputs(network: nn.Module) -> Iterator[None]:
    """Within this context every layer computes with a copy of its input, as a quantizer makes one."""
    with ExitStack() as hooks:
        for layer in layers_of(network).values():
            hook = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1.0, *inputs[1:]))
            hooks.enter_context(hook)
        yield
