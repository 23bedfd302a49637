"""Meetings of the processes that share a task, and what one tells another while both work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning import Fabric

Tell = Callable[[str, Any], None]
"""Tells a value under a name."""
END = ""
"""The name under which a speaker tells that nothing more comes, or what it failed with."""


@contextmanager
def meeting(fabric: Fabric) -> Iterator[None]:
    """Within this context every process does its part; after it none goes on before all are done.

    Raises:
        ValueError: another process raised one.
        RuntimeError: another process failed otherwise. What is raised in this one passes through, once the others know.
    """
    error: Exception | None = None
    try:
        yield
    # Whoever fails must not leave the others waiting.
    except Exception as failure:
        error = failure
    errors: list[str | None] = [None if error is None else _text(error)] * fabric.world_size
    if fabric.world_size > 1:
        dist.all_gather_object(errors, errors[0])
    if error is not None:
        raise error
    if any(errors):
        raise next(_error(rank, text) for rank, text in enumerate(errors) if text)


def speak(listener: int, speech: Callable[[Tell], None]) -> None:
    """Send another process, which hears it as `Heard`, all that a function tells; each value waits until it is heard.

    Args:
        listener: the rank of the other process.
        speech: is given what to tell by; values are tensors on the CPU and what else can be pickled.
    """

    def tell(name: str, value: object) -> None:
        dist.send_object_list([name, value], dst=listener)

    try:
        speech(tell)
    except Exception as error:
        tell(END, _text(error))
        raise
    tell(END, None)


@contextmanager
def hearing(speaker: int) -> Iterator["Heard"]:
    """Within this context another process `speak`s to this one; after it nothing is left for those who listen later.

    Args:
        speaker: the rank of the other process.
    """
    heard = Heard(speaker)
    try:
        yield heard
    finally:
        heard.out()


class Heard:
    """The values that another process tells.

    Args:
        speaker: the rank of the other process.
    """

    def __init__(self, speaker: int) -> None:
        self._speaker = speaker
        self._values: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:  # noqa: ANN401
        """The value that is told under a name, waited for if it has not come yet.

        Raises:
            ValueError: the other process has raised one before it told it.
            RuntimeError: it has failed otherwise, or does not tell it.
        """
        while name not in self._values and END not in self._values:
            self._hear()
        if name not in self._values:
            raise _error(self._speaker, self._values[END] or f"it does not tell {name}")
        return self._values[name]

    def out(self) -> None:
        """Wait for the end."""
        while END not in self._values:
            self._hear()

    def _hear(self) -> None:
        parcel: list[Any] = [None, None]
        dist.recv_object_list(parcel, src=self._speaker)
        name, value = parcel
        self._values[name] = value


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _error(rank: int, text: str) -> Exception:
    """The error that stands for one of another process, of which only `_text` was sent."""
    kind, _, message = text.partition(": ")
    # A wrong input keeps its one line, whichever process met it.
    return ValueError(message) if kind == ValueError.__name__ else RuntimeError(f"rank {rank} failed: {text}")
