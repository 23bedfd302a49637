"""Calls of a block: its inputs and the outputs that it is to have, batch by batch, in files."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

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
    """

    i: int
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: Sequence[Tensor]

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return len(self.outputs[0])

    def rows(self, chosen: Tensor) -> "Call":
        """The call on some of its rows; tensors that are not of rows, such as rotations of places, stay whole."""
        leaves, tree = tree_flatten(self.arguments)
        some = [leaf[chosen] if isinstance(leaf, Tensor) and len(leaf) == self.count else leaf for leaf in leaves]
        return Call(self.i, tree_unflatten(some, tree), [output[chosen] for output in self.outputs])


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
        self._trees: list[tuple[int, TreeSpec, list[Any]]] = []
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
        write_tensors(self._file(len(self)), tensors | outputs)
        self._counts.append(call.count)
        self._trees.append((call.i, tree, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The step and the number of rows of every call."""
        return [(i, count) for (i, *_), count in zip(self._trees, self._counts, strict=True)]

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, place: int) -> Call:  # type: ignore[override]
        i, tree, constants = self._trees[place]
        tensors = load_file(self._file(place))
        leaves = [tensors.get(f"argument/{number}", constant) for number, constant in enumerate(constants)]
        outputs = [tensors[f"output/{number}"] for number in range(len(tensors)) if f"output/{number}" in tensors]
        return Call(i, tree_unflatten(leaves, tree), outputs)

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:06d}.safetensors"
