"""The parts of a network that are rounded one after the other."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, nn

from ptq_diffusion.network.observing import showing_inputs


class _ReachedError(Exception):
    """All that was to be seen in a forward has been."""


@dataclass(frozen=True)
class Part:
    """Layers that are rounded together.

    Args:
        name: of the block that they are in; of a layer outside of blocks its own; of several parts that of the first.
        layers: names, in the order in which a forward reaches them.
    """

    name: str
    layers: tuple[str, ...]


def parts_of(blocks: Sequence[str], layers: Sequence[str]) -> list[Part]:
    """Blocks, and layers outside of them each alone, in the order in which a forward reaches the first layer of each.

    Args:
        blocks: names, none within another; one without any of the layers makes no part.
        layers: names in the order of a forward.
    """
    members: dict[str, list[str]] = {}
    for layer in layers:
        block = next((block for block in blocks if layer.startswith(f"{block}.")), layer)
        members.setdefault(block, []).append(layer)
    return [Part(name, tuple(inside)) for name, inside in members.items()]


def joined(parts: Iterable[Part], size: Callable[[str], int], room: int) -> list[Part]:
    """Neighbouring parts as one, as far as their layers' sizes go into a room; a part that does not stays alone."""
    together: list[list[Part]] = []
    total = 0
    for part in parts:
        own = sum(map(size, part.layers))
        if not together or total + own > room:
            together.append([])
            total = 0
        together[-1].append(part)
        total += own
    return [Part(group[0].name, tuple(layer for part in group for layer in part.layers)) for group in together]


def dealt(part: Part, size: Callable[[str], int], count: int) -> list[Part]:
    """At most `count` shares of a part's layers, of sizes as alike as dealing the largest first makes them."""
    shares: list[list[str]] = [[] for _ in range(min(count, len(part.layers)))]
    for layer in sorted(part.layers, key=size, reverse=True):
        min(shares, key=lambda share: sum(map(size, share))).append(layer)
    return [Part(part.name, tuple(layer for layer in part.layers if layer in share)) for share in shares]


def in_order_of_calls(network: nn.Module, layers: Iterable[str], forward: Callable[[], object]) -> list[str]:
    """The layers that a forward calls, in its order."""
    called: dict[str, None] = {}
    with showing_inputs(network, layers, lambda name, _: called.setdefault(name)):
        forward()
    return list(called)


def show_inputs(
    network: nn.Module, layers: Sequence[str], see: Callable[[str, Tensor], object], forward: Callable[[], object]
) -> None:
    """Show the first input of each layer in a forward, which ends there: nothing behind the last of them is computed.

    A layer that is called anew, as in a DiT, is shown once.
    """
    missing = set(layers)

    def see_once(name: str, x: Tensor) -> None:
        if name in missing:
            missing.remove(name)
            see(name, x)
        if not missing:
            raise _ReachedError

    with suppress(_ReachedError), showing_inputs(network, layers, see_once):
        forward()
