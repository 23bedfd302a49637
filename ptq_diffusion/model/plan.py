"""The value that a bitwidth policy fills: how many bits every site gets."""

from collections.abc import Mapping
from dataclasses import dataclass

from ptq_diffusion.numeric.grid import FLOAT_BITS


@dataclass(frozen=True)
class LayerBits:
    """Bits of one layer's weight and of its input activation: 2 to 8, or 32 for float.

    Raises:
        ValueError: a bitwidth is neither.
    """

    weight: int
    activation: int

    def __post_init__(self) -> None:
        for name, bits in (("weight", self.weight), ("activation", self.activation)):
            if bits != FLOAT_BITS and not (isinstance(bits, int) and 2 <= bits <= 8):
                raise ValueError(f"expected {name} bits of 2 to 8, or {FLOAT_BITS} for float, got {bits}")


@dataclass(frozen=True)
class BitwidthPlan:
    """Bits of every site, by the site's name; the same at every step."""

    layers: Mapping[str, LayerBits]

    def __getitem__(self, site: str) -> LayerBits:
        if site not in self.layers:
            raise KeyError(f"the bitwidth plan has no site {site!r}; it was made for another network")
        return self.layers[site]
