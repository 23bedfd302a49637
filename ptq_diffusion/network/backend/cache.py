"""Objects that layers make when they are first needed and keep."""

from collections.abc import Callable, Sequence
from typing import Any


class Cache:
    """Objects made of a layer's parts when they are first asked for, which are neither copied nor pickled."""

    def __init__(self) -> None:
        self._entries: dict[object, tuple[Sequence[object], Any]] = {}

    def once(self, key: object, sources: Sequence[object], make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """The object of a key, made now if there is none.

        Args:
            key: tells it from others that are made of the same parts.
            sources: the parts that it is made of: other ones in their places have an object of their own.
            make: makes it.
        """
        # An entry holds its parts, so that no other gets the identity of one.
        whole = key, *map(id, sources)
        if whole not in self._entries:
            self._entries[whole] = sources, make()
        return self._entries[whole][1]

    def __deepcopy__(self, memo: object) -> "Cache":
        return type(self)()

    def __reduce__(self) -> tuple[type["Cache"], tuple[()]]:
        return type(self), ()


class SharedCache(Cache):
    """A cache that copies of a layer share: a copy of a network with other settings has the same weights.

    oneDNN's order of a weight is not a tensor that torch can copy or save.
    """

    def __deepcopy__(self, memo: object) -> "SharedCache":
        return self
