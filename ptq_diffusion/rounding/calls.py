"""Calls of a block: its inputs and the outputs that it is to have, batch by batch, in files."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from ptq_diffusion.artefact.files import write_tensors


class _ReturnedError(Exception):
    """A block has returned, and nothing behind it is wanted."""


@dataclass(frozen=True)
class Call:
    """One call of a block in one batch of states.

    Args:
        i: the step.
        arguments: positional ones and those by name, as a tree of tensors and constants.
        outputs: the tensors that the block is to return, each (R, ...).
        of_rows: whether each leaf of the arguments is a tensor (R, ...), see `leaves_of_rows`.
    """

    i: int
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: Sequence[Tensor]
    of_rows: Sequence[bool]

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return len(self.outputs[0])

    def rows(self, chosen: Tensor) -> "Call":
        """The call on some of its rows; tensors that are not of rows, such as rotations of places, stay whole."""
        leaves, tree = tree_flatten(self.arguments)
        pairs = zip(leaves, self.of_rows, strict=True)
        some = [leaf[chosen] if is_of_rows else leaf for leaf, is_of_rows in pairs]
        return Call(self.i, tree_unflatten(some, tree), [output[chosen] for output in self.outputs], self.of_rows)

    def to(self, device: torch.device | str) -> "Call":
        """The call with all tensors on another device."""
        arguments, outputs = tree_map(
            lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (self.arguments, list(self.outputs))
        )
        return Call(self.i, arguments, outputs, self.of_rows)


def call_of(block: nn.Module, forward: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """The arguments and the outputs of the first call of a block in a forward, which ends there.

    Raises:
        ValueError: the forward does not call it.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def see(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
        calls.append((positional, named, tensors_of(output)))
        raise _ReturnedError

    with suppress(_ReturnedError), block.register_forward_hook(see, with_kwargs=True):
        forward()
    if not calls:
        raise ValueError("expected a block that every forward of the network calls, got one that this did not")
    return calls[0]


def leaves_of_rows(block: nn.Module, one: Callable[[], object], two: Callable[[], object]) -> list[bool]:
    """Whether each leaf of a block's arguments has a row for every row of the batch.

    A tensor has if it grows with the batch; its length alone may equal the number of rows by chance.

    Args:
        block: which.
        one: a forward of one state.
        two: a forward of two states.

    Raises:
        ValueError: a tensor grows with the batch in another way than by a row for each of the output, or an output
            does not grow.
    """
    calls = [call_of(block, forward) for forward in (one, two)]
    counts = [outputs[0].shape[:1] for *_, outputs in calls]
    pairs = zip(*(tree_flatten((positional, named))[0] for positional, named, _ in calls), strict=True)
    shapes = [[leaf.shape[:1] if isinstance(leaf, Tensor) else None for leaf in pair] for pair in pairs]
    lengths = [[output.shape[:1] for output in pair] for pair in zip(*(outputs for *_, outputs in calls), strict=True)]
    odd = [pair for pair in shapes if pair[0] != pair[1] and pair != counts]
    odd += [pair for pair in lengths if pair != counts or counts[0] == counts[1]]
    if odd:
        raise ValueError(
            "expected a block whose tensors have a row for each row of the batch or are whole, got one of "
            f"{[tuple(shape or ()) for shape in odd[0]]} along the first dimension for one and for two states; "
            "choose rounding=gptq or adaround"
        )
    return [pair[0] != pair[1] for pair in shapes]


def tensors_of(output: object) -> list[Tensor]:
    """The tensors within what a block returns."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


class CallFiles(Sequence[Call]):
    """Calls in files, which are mapped: memory holds them only where there is room.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees: list[tuple[int, TreeSpec, list[Any], Sequence[bool]]] = []
        self._counts: list[int] = []

    @classmethod
    @contextmanager
    def within(cls, folder: Path) -> Iterator["CallFiles"]:
        """Calls in a folder that is there within this context."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield cls(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def append(self, call: Call) -> None:
        """Write one more call."""
        leaves, tree = tree_flatten(call.arguments)
        tensors = {f"argument/{place}": leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        outputs = {f"output/{place}": output for place, output in enumerate(call.outputs)}
        write_tensors(self._file(len(self)), _apart(tensors | outputs))
        self._counts.append(call.count)
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._trees.append((call.i, tree, constants, call.of_rows))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The step and the number of rows of every call."""
        return [(i, count) for (i, *_), count in zip(self._trees, self._counts, strict=True)]

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, place: int) -> Call:  # type: ignore[override]
        i, tree, constants, of_rows = self._trees[place]
        tensors = load_file(self._file(place))
        leaves = [tensors.get(f"argument/{number}", constant) for number, constant in enumerate(constants)]
        outputs = [tensors[f"output/{number}"] for number in range(len(tensors)) if f"output/{number}" in tensors]
        return Call(i, tree_unflatten(leaves, tree), outputs, of_rows)

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:06d}.safetensors"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which no two share memory, as a file asks; a block may return one twice, or what it is given."""
    places: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return apart
