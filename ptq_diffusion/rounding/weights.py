"""The rounding of the weights of a whole network, part by part."""

from abc import abstractmethod
from functools import cached_property

from torch import Tensor

from ptq_diffusion.network import QuantizedWeight
from ptq_diffusion.network.insertion import Integers, weight_quantizer
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import AffineQuantizer
from ptq_diffusion.rounding.parts import Part, parts_of
from ptq_diffusion.rounding.reconstruction import Reconstruction, Subject
from ptq_diffusion.rounding.step_weights import StepWeights

Copy = tuple[str, int]
"""A copy of a weight: the layer's name and the bits."""


class WeightReconstruction(Reconstruction):
    """A network whose weights get integers part by part.

    Args:
        subject: the network, rounded to nearest.
        weighting: the rule for the weights of steps.
    """

    def __init__(self, subject: Subject, weighting: StepWeights) -> None:
        super().__init__(subject, weighting)
        self._weight = subject.weight
        self._quantizers: dict[Copy, AffineQuantizer] = {}

    @cached_property
    def parts(self) -> list[Part]:
        """The blocks of the network and the layers outside of them, in the order of a forward.

        A block without a quantized weight is none of them.

        Raises:
            ValueError: there are no states, or no weight is quantized.
        """
        parts = parts_of(self.model.blocks(), [name for name in self.layers_in_order() if self.bits(name)])
        if not parts:
            raise ValueError(
                "expected a plan with quantized weights to round, got one that leaves all of them float; set "
                "rounding=nearest or another bitwidth"
            )
        return parts

    @abstractmethod
    def rounded(self, part: Part) -> Integers:
        """The integers of a part; the parts before it are installed."""

    def portions(self, part: Part, count: int) -> list[Part]:  # noqa: ARG002
        """Split a part's layers into at most `count` groups that devices can round independently.

        The integers are the same as without; by default the part is not split.
        """
        return [part]

    def copies(self, part: Part) -> dict[Copy, tuple[int, ...]]:
        """The copies of weights of a part that have integers, and the shape of each."""
        shapes = {site.name: site.weight_shape for site in self.quantized.sites()}
        return {(name, bits): shapes[name] for name in part.layers for bits in self.bits(name)}

    def install(self, integers: Integers) -> None:
        """Let the quantized network compute with integers that were chosen."""
        for (name, bits), tensor in integers.items():
            weight = QuantizedWeight.of_integers(tensor.to(self.device), self.quantizer(name, bits))
            self.quantized.layer(name).weights[self.place(name, bits)] = weight

    def bits(self, name: str) -> list[int]:
        """The bitwidths of a layer's copies that have integers."""
        return [bits for bits in self.quantized.plan.weight_copies(name) if bits != FLOAT_BITS]

    def place(self, name: str, bits: int) -> int:
        """The index of a copy among a layer's weights."""
        return self.quantized.plan.weight_copies(name).index(bits)

    def float_weight(self, name: str) -> Tensor:
        """The weight of a float layer."""
        return self.model.network.get_parameter(f"{name}.weight").detach().float()

    def quantizer(self, name: str, bits: int) -> AffineQuantizer:
        """The frozen quantizer of a copy, whose range is searched on the CPU as that of nearest is.

        Raises:
            TypeError: a kind of quantizer whose integers cannot be stored yet.
        """
        if (name, bits) not in self._quantizers:
            equalisation = self.quantized.layer(name).settings.equalisation
            quantizer = weight_quantizer(self.float_weight(name).cpu(), bits, self._weight, equalisation)
            self._quantizers[name, bits] = quantizer.to(self.device)
        return self._quantizers[name, bits]
