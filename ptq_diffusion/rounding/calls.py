"""Calls of a block: its inputs and the outputs that it is to have, batch by batch, in files."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten


IMAGES = 4
"""The number of dimensions of images, (R, C, H, W)."""


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

    def joins(self, other: "Call") -> bool:
        """Whether both calls can be one of all their rows: no tensor is whole, and constants are the same."""
        sides = [tree_flatten(call.arguments) for call in (self, other)]
        if sides[0][1] != sides[1][1] or self.of_rows != other.of_rows:
            return False
        leaves = zip(sides[0][0], sides[1][0], self.of_rows, strict=True)
        return all(is_of_rows or not isinstance(one, Tensor) and one == another for one, another, is_of_rows in leaves)

    @classmethod
    def joined(cls, calls: Sequence["Call"]) -> "Call":
        """One call of the rows of all, each of which `joins` the first; its step is the first one's."""
        if len(calls) == 1:
            return calls[0]
        leaves = zip(*(tree_flatten(call.arguments)[0] for call in calls), strict=True)
        tree, of_rows = tree_flatten(calls[0].arguments)[1], calls[0].of_rows
        whole = [torch.cat(parts) if is_of_rows else parts[0] for parts, is_of_rows in zip(leaves, of_rows, strict=True)]
        outputs = [torch.cat(parts) for parts in zip(*(call.outputs for call in calls), strict=True)]
        return cls(calls[0].i, tree_unflatten(whole, tree), outputs, of_rows)

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


@dataclass(frozen=True)
class _Stored:
    """A tensor within a file, row after row.

    Args:
        offset: bytes before it.
        shape: of the tensor.
        dtype: of its numbers.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def write(cls, file: BinaryIO, tensor: Tensor) -> "_Stored":
        """Append a tensor to a file."""
        stored = cls(file.tell(), tuple(tensor.shape), tensor.dtype)
        # Channels last in memory, for which convolutions are faster on a CPU.
        numbers = tensor.movedim(1, -1) if tensor.dim() == IMAGES else tensor
        file.write(numbers.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return stored

    def read(self, file: BinaryIO, rows: Sequence[int] | None) -> Tensor:
        """The tensor, or some of its rows, of which no other is read.

        Raises:
            ValueError: the file was cut.
        """
        places, row = ([0], self.shape) if rows is None else (rows, self.shape[1:])
        size = prod(row) * self.dtype.itemsize
        numbers = torch.empty(len(places), size, dtype=torch.uint8)
        for place, buffer in zip(places, numbers.numpy(), strict=True):
            file.seek(self.offset + place * size)
            if file.readinto(buffer) != size:  # type: ignore[attr-defined]
                raise ValueError(f"expected whole calls of a block in {file.name}, got a file that was cut; round again")
        shape = self.shape if rows is None else (len(rows), *row)
        if len(shape) == IMAGES:
            count, channels, *sides = shape
            return numbers.view(self.dtype).reshape(count, *sides, channels).movedim(-1, 1)
        return numbers.view(self.dtype).reshape(shape)


@dataclass(frozen=True)
class _Entry:
    """A call whose tensors lie in a file: the step, the number of rows, the leaves of the arguments, the outputs."""

    i: int
    count: int
    tree: TreeSpec
    leaves: Sequence[Any]
    outputs: Sequence[_Stored]
    of_rows: Sequence[bool]


class CallFiles(Sequence[Call]):
    """Calls in files, of which memory holds those rows that are asked for.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: list[_Entry] = []

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
        # Scratch of one attempt, which is made anew after a kill: nothing has to reach the disk.
        with self._file(len(self)).open("wb") as file:
            stored = [_Stored.write(file, leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            outputs = [_Stored.write(file, output) for output in call.outputs]
        self._entries.append(_Entry(call.i, call.count, tree, stored, outputs, call.of_rows))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The step and the number of rows of every call."""
        return [(entry.i, entry.count) for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: int) -> Call:  # type: ignore[override]
        return self._read(place, None)

    def rows(self, place: int, chosen: Tensor) -> Call:
        """`self[place].rows(chosen)`, of which nothing else is read."""
        return self._read(place, chosen.tolist())

    def _read(self, place: int, rows: Sequence[int] | None) -> Call:
        entry = self._entries[place]
        with self._file(place).open("rb") as file:
            leaves = [
                leaf.read(file, rows if is_of_rows else None) if isinstance(leaf, _Stored) else leaf
                for leaf, is_of_rows in zip(entry.leaves, entry.of_rows, strict=True)
            ]
            outputs = [output.read(file, rows) for output in entry.outputs]
        return Call(entry.i, tree_unflatten(leaves, entry.tree), outputs, entry.of_rows)

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:06d}.bin"
