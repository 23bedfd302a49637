"""The sites of a network: its places that can be quantized."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The operation that a site computes."""

    CONV2D = "conv2d"
    LINEAR = "linear"
    MATMUL = "matmul"


class Role(Enum):
    """The part that a site plays; the first and the last layer and attention's products often get bits of their own."""

    FIRST = "first"
    INNER = "inner"
    LAST = "last"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Site:
    """A layer with a weight, or one of attention's two products, whose operands both are activations.

    Args:
        name: a layer's dotted name within the network; that of an attention layer and `.qk` or `.pv` for a product.
        kind: convolution, linear or a product.
        role: first, inner, last or attention.
        macs: multiply-accumulates of one forward of one sample.
        weight_shape: the shape of its weight, output channels first; (0,) of a product, which stores none.
        skip: how many channels of its input lie in front of those of a concatenated skip connection; None without one.
        input_size: how many numbers a layer's input has in one forward of one sample; 0 of a product.
    """

    name: str
    kind: Kind
    role: Role
    macs: int
    weight_shape: tuple[int, ...]
    skip: int | None = None
    input_size: int = 0

    @property
    def weighted(self) -> bool:
        """Whether it is a layer with a weight."""
        return self.kind is not Kind.MATMUL

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the tensors that are quantized at every call.

        The input of a layer has the layer's name. Those of a product are `<attention>.q` and `.k`, or `.p` and `.v`:
        the first has the activation's bits, the second the weight's.
        """
        if self.weighted:
            return (self.name,)
        attention, _, letters = self.name.rpartition(".")
        return tuple(f"{attention}.{letter}" for letter in letters)


def product_sites(attention: str, macs: int) -> tuple[Site, Site]:
    """The sites QK^T and PV of an attention layer, p being softmax(QK^T).

    Args:
        attention: its dotted name.
        macs: of either product, L x L x C.
    """
    qk, pv = (Site(f"{attention}.{name}", Kind.MATMUL, Role.ATTENTION, macs, (0,)) for name in ("qk", "pv"))
    return qk, pv


def products_by_attention(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """The products among some sites by the name of their attention layer."""
    products: defaultdict[str, list[Site]] = defaultdict(list)
    for site in sites:
        if not site.weighted:
            products[site.name.rpartition(".")[0]].append(site)
    return dict(products)
