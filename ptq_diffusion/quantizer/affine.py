"""Uniform quantization with a scale and a zero point."""

from collections.abc import Mapping
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.histogram import require_bins
from ptq_diffusion.numeric.histograms import Histograms
from ptq_diffusion.quantizer.form import Form, Numbers, Static, fake_quantized
from ptq_diffusion.quantizer.granularity import Granularity, PerTensor
from ptq_diffusion.quantizer.input_granularity import PerToken
from ptq_diffusion.quantizer.quantizer import Quantizer, State
from ptq_diffusion.quantizer.range_search import Distribution, RangeSearch, affine_parameters


class AffineQuantizer(Quantizer):
    """x_hat = s (clamp(round(x / s) + z, low, high) - z), Jacob et al., CVPR 2018, arXiv 1712.05877.

    With a granularity of inputs, a stream of tensors is observed through histograms, one for each group. With one of
    weights alone, exactly one tensor is observed, all of whose values are seen. Rounding is to nearest, ties to even,
    as in `torch.fake_quantize_per_tensor_affine`, which this equals bit for bit. Arithmetic is float32 whatever the
    dtype of a tensor: bfloat16 cannot tell the whole numbers above 256 apart, and x / s may be beyond the largest of
    float16.

    Args:
        bits: 2 to 8.
        symmetric: fix the zero point at 0 on a signed grid.
        granularity: the groups that have a scale and a zero point each.
        range_search: how the covered interval is chosen.
        bins: bins of each histogram.

    Raises:
        ValueError: bits or bins out of range, or a granularity whose groups differ from tensor to tensor.
    """

    scale: Tensor
    zero_point: Tensor
    factors: Tensor | None

    def __init__(
        self, bits: int, symmetric: bool, granularity: Granularity, range_search: RangeSearch, bins: int
    ) -> None:
        super().__init__(granularity)
        if isinstance(granularity, PerToken):
            raise ValueError(
                f"expected a granularity of which grids can be found beforehand, got {granularity}; choose "
                "quantizer@quantizer.activation=dynamic_per_token"
            )
        self.grid = Grid(bits, symmetric)
        self.range_search = range_search
        require_bins(bins)
        self._histograms: Histograms | None = Histograms(bins) if granularity.of_inputs else None
        self._weight: Distribution | None = None
        self._shape: tuple[int, ...] = (-1,)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("factors", None)

    def equalised(self, factors: Tensor) -> Self:
        """Fit grids to f x instead of x and divide the quantized values by f: x_hat = Q(f x) / f.

        So s / f is the scale of an element. Call before observing; returns itself.

        Args:
            factors: f, positive, float32, which broadcasts against x.
        """
        self.factors = factors
        return self

    def observe(self, x: Tensor) -> None:
        self.require(State.OBSERVING)
        if self._weight is not None:
            raise RuntimeError(f"a quantizer with {self.granularity} observes one tensor, a weight; this is its second")
        numbers = x.detach().float() if self.factors is None else x.detach().float() * self.factors
        rows, counts = self.granularity.rows(numbers)
        if self._histograms is not None:
            self._histograms.add(rows, counts)
            return
        self._weight = Distribution.of_groups(rows, counts)
        self._shape = self.granularity.parameter_shape(x.shape)

    def freeze(self) -> None:
        self.require(State.OBSERVING)
        distribution = self._distribution()
        low, high = self.range_search(distribution, self.grid)
        scale, zero_point = affine_parameters(low, high, self.grid)
        self.scale, self.zero_point = scale.view(self._shape), zero_point.view(self._shape)
        self._histograms = self._weight = None
        self.state = State.FROZEN

    def observation(self) -> Mapping[str, Tensor]:
        self.require(State.OBSERVING)
        if self._histograms is None or not len(self._histograms):
            raise RuntimeError("nothing was observed; run calibration data through the network first")
        return self._histograms.tensors()

    def observed(self, *observations: Mapping[str, Tensor]) -> None:
        self.require(State.OBSERVING)
        for observation in observations:
            if self._histograms is None or observation.keys() != {"counts", "exponent", "extremes"}:
                raise ValueError(
                    f"expected histograms for a quantizer of inputs, got {', '.join(observation) or 'nothing'}; "
                    "calibrate again"
                )
        first, *others = map(Histograms.of_tensors, observations)
        for other in others:
            first.join(other)
        self._histograms = first

    def to_integers(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        scale, zero_point = self._broadcast(x)
        return ((x.float() * (1 / scale)).round() + zero_point).clamp(self.grid.low, self.grid.high).to(torch.int32)

    def from_integers(self, integers: Tensor) -> Tensor:
        scale, zero_point = self._broadcast(integers)
        return (integers - zero_point) * scale

    def forward(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        whole = isinstance(self.granularity, PerTensor) and self.factors is None
        if whole and not (torch.is_grad_enabled() and self.scale.requires_grad):
            return self._numbers.fake_quantized(x)
        return self.differentiable(x)

    def differentiable(self, x: Tensor) -> Tensor:
        """x_hat as `forward` gives it, bit for bit, by operations that a gradient passes, which take longer.

        The gradient of x is 1 where x / s + z rounds to an integer of the grid and 0 where it is clamped. A scale that
        requires a gradient gets that of learned step sizes, Esser et al., ICLR 2020, arXiv 1902.08153, eq. 3.
        """
        self.require(State.FROZEN)
        return fake_quantized(x, *self._broadcast(x), self.grid)

    def spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every element of a tensor that the quantizer is of, each of the shape of x.

        They are for roundings, which take one element after the other.
        """
        self.require(State.FROZEN)
        scale, zero_point = self._broadcast(x)
        return scale.expand_as(x), zero_point.expand_as(x)

    @cached_property
    def _numbers(self) -> Numbers:
        """The numbers of a frozen grid for a whole tensor."""
        return Numbers.of(self.scale, self.zero_point, self.grid)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, symmetric={self.grid.symmetric}, granularity={self.granularity}"

    @property
    def form(self) -> Form:
        return Static(self.granularity)

    def _broadcast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point as tensors that broadcast against x."""
        scale, zero_point = (self.granularity.spread(part, x.shape) for part in (self.scale, self.zero_point))
        return scale if self.factors is None else scale / self.factors, zero_point

    def _distribution(self) -> Distribution:
        if self._weight is not None:
            return self._weight
        if self._histograms is None or not len(self._histograms):
            raise RuntimeError("nothing was observed; run calibration data through the network before freezing")
        return Distribution(*self._histograms.values())
