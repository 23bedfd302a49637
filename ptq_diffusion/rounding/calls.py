"""Calls of a block: its inputs and the outputs that it is to have, batch by batch, in files."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

IMAGES = 4
"""The number of dimensions of images, (R, C, H, W)."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a call, positional ones and those by name."""


class _ReturnedError(Exception):
    """A block has returned, and nothing behind it is wanted."""


@dataclass(frozen=True)
class Call:
    """One call of a block in one batch of states.

    Args:
        i: the step.
        leaves: the tensors and constants among the arguments.
        tree: that they are the leaves of.
        outputs: the tensors that the block is to return, each (R, ...).
        of_rows: whether each leaf is a tensor (R, ...), see `leaves_of_rows`.
    """

    i: int
    leaves: Sequence[Any]
    tree: TreeSpec
    outputs: Sequence[Tensor]
    of_rows: Sequence[bool]

    @classmethod
    def of(cls, i: int, arguments: Arguments, outputs: Sequence[Tensor], of_rows: Sequence[bool]) -> "Call":
        """A call by its arguments."""
        return cls(i, *tree_flatten(arguments), outputs, of_rows)

    @property
    def arguments(self) -> Arguments:
        """Positional ones and those by name."""
        arguments: Arguments = tree_unflatten(self.leaves, self.tree)
        return arguments

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return len(self.outputs[0])

    def rows(self, chosen: Tensor) -> "Call":
        """The call on some of its rows; tensors that are not of rows, such as rotations of places, stay whole."""
        pairs = zip(self.leaves, self.of_rows, strict=True)
        some = [leaf[chosen] if is_of_rows else leaf for leaf, is_of_rows in pairs]
        return replace(self, leaves=some, outputs=[output[chosen] for output in self.outputs])

    def joins(self, other: "Call") -> bool:
        """Whether both calls can be one of all their rows: no tensor is whole, and constants are the same."""
        if self.of_rows != other.of_rows or self.tree != other.tree:
            return False
        pairs = zip(self.leaves, other.leaves, self.of_rows, strict=True)
        return all(of_rows or not isinstance(ours, Tensor) and ours == theirs for ours, theirs, of_rows in pairs)

    @classmethod
    def joined(cls, calls: Sequence["Call"]) -> "Call":
        """One call of the rows of all, each of which `joins` the first; its step is the first one's."""
        first, *others = calls
        if not others:
            return first
        columns = zip(zip(*(call.leaves for call in calls), strict=True), first.of_rows, strict=True)
        leaves = [torch.cat(parts) if is_of_rows else parts[0] for parts, is_of_rows in columns]
        outputs = [torch.cat(parts) for parts in zip(*(call.outputs for call in calls), strict=True)]
        return replace(first, leaves=leaves, outputs=outputs)

    def to(self, device: torch.device | str) -> "Call":
        """The call with all tensors on another device."""
        leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return replace(self, leaves=leaves, outputs=[output.to(device) for output in self.outputs])


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
                raise ValueError(
                    f"expected whole calls of a block in {file.name}, got a file that was cut; round again"
                )
        shape = self.shape if rows is None else (len(rows), *row)
        if len(shape) == IMAGES:
            count, channels, *sides = shape
            return numbers.view(self.dtype).reshape(count, *sides, channels).movedim(-1, 1)
        return numbers.view(self.dtype).reshape(shape)


class CallFiles(Sequence[Call]):
    """Calls in files, of which memory holds those rows that are asked for.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The tensors of the calls among them stay in their files.
        self._entries: list[tuple[int, Call, Sequence[_Stored]]] = []

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
        # Scratch of one attempt, which is made anew after a kill: nothing has to reach the disk.
        with self._file(len(self)).open("wb") as file:
            leaves = [_Stored.write(file, leaf) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
            outputs = [_Stored.write(file, output) for output in call.outputs]
        self._entries.append((call.count, replace(call, leaves=leaves, outputs=()), outputs))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The step and the number of rows of every call."""
        return [(call.i, count) for count, call, _ in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: int) -> Call:  # type: ignore[override]
        return self._read(place, None)

    def rows(self, place: int, chosen: Tensor) -> Call:
        """`self[place].rows(chosen)`, of which nothing else is read."""
        return self._read(place, chosen.tolist())

    def _read(self, place: int, rows: Sequence[int] | None) -> Call:
        _, call, outputs = self._entries[place]
        with self._file(place).open("rb") as file:
            leaves = [
                leaf.read(file, rows if is_of_rows else None) if isinstance(leaf, _Stored) else leaf
                for leaf, is_of_rows in zip(call.leaves, call.of_rows, strict=True)
            ]
            return replace(call, leaves=leaves, outputs=[output.read(file, rows) for output in outputs])

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:06d}.bin"
