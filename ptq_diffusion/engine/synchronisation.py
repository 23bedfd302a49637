"""Synchronisation of the processes that share a task, and values that one sends another while both work."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile
from typing import Any

import torch
import torch.distributed as dist
from lightning import Fabric

Send = Callable[[str, Any], None]
"""Sends a value under a name."""
END = ""
"""The name under which a sender says that nothing more comes, or what it failed with."""
KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ValueError, OSError, FileNotFoundError, FloatingPointError, MemoryError, torch.OutOfMemoryError)
}
"""Errors that a user can mend, by their names, which stay what they are in another process."""
TRACEBACK = "Traceback (most recent call last):\n"
"""The line above every printed traceback, of several that led to each other too."""


@contextmanager
def synchronised(fabric: Fabric) -> Iterator[None]:
    """Within this context every process does its part; after it none goes on before all are done.

    Raises:
        Exception: another process failed, see `error_of`. What this one raises passes through, once the others know.
    """
    error: Exception | None = None
    try:
        yield
    # Whoever fails must not leave the others waiting.
    except Exception as failure:
        error = failure
    errors: list[str | None] = [None if error is None else text_of(error)] * fabric.world_size
    if fabric.world_size > 1:
        dist.all_gather_object(errors, errors[0])
    if error is not None:
        raise error
    if any(errors):
        raise next(error_of(rank, text) for rank, text in enumerate(errors) if text)


def send_all(receiver: int, work: Callable[[Send], None]) -> None:
    """Run a function here whose values another process receives, see `receiving`; a value waits until it is received.

    A queue of values, so that the function does not wait, made fits of two processes slower (experiments/fit_cost).

    Args:
        receiver: the rank of the other process.
        work: takes a function that sends a value under a name: tensors on the CPU, and what else can be pickled.

    Raises:
        RuntimeError: the other process is gone. What the function raises passes through, once the other process knows.
    """

    def send(name: str, value: object) -> None:
        dist.send_object_list([name, value], dst=receiver)

    try:
        work(send)
    except Exception as error:
        send(END, text_of(error))
        raise
    send(END, None)


@contextmanager
def receiving(sender: int) -> Iterator["Received"]:
    """Within this context another process sends to this one by `send_all`; after it nothing is left to be received.

    Args:
        sender: the rank of the other process.
    """
    received = Received(sender)
    try:
        yield received
    finally:
        received.drain()


class Received:
    """The values that another process sends.

    Args:
        sender: the rank of the other process.
    """

    def __init__(self, sender: int) -> None:
        self._sender = sender
        self._values: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:  # noqa: ANN401
        """The value that is sent under a name, waited for if it has not come yet.

        Raises:
            Exception: the other process has failed before it sent it, see `error_of`.
            RuntimeError: it does not send it.
        """
        while name not in self._values and END not in self._values:
            self._receive()
        if name not in self._values:
            raise error_of(self._sender, self._values[END] or f"it does not send {name}")
        return self._values[name]

    def drain(self) -> None:
        """Receive all that is left."""
        while END not in self._values:
            self._receive()

    def _receive(self) -> None:
        message: list[Any] = [None, None]
        dist.recv_object_list(message, src=self._sender)
        name, value = message
        self._values[name] = value


def text_of(error: Exception) -> str:
    """The name of an error and its message, to be sent to another process."""
    return f"{type(error).__name__}: {error}"


def text_in(printed: str) -> str:
    """The same of the error that a printed traceback ends with, below the indented lines of the code."""
    lines = dropwhile(lambda line: line.startswith(" "), printed.rpartition(TRACEBACK)[2].splitlines())
    kind, colon, message = "\n".join(lines).partition(": ")
    return kind.rpartition(".")[2] + colon + message


def error_of(rank: int, text: str) -> Exception:
    """The error that stands for one of another process, of which only `text_of` is known.

    It is of the same kind if that is of `KINDS`, else a `RuntimeError` that says which process failed.
    """
    kind, _, message = text.partition(": ")
    # A wrong input keeps its one line, whichever process met it.
    return KINDS[kind](message) if kind in KINDS else RuntimeError(f"rank {rank} failed: {text}")
