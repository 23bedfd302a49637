"""The best linear, shift-invariant estimate of the float output from all that a quantized step knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch.nn.functional import pixel_unshuffle

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, PathName, along
from ptq_diffusion.correction.evidence import PairedBatch, PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import (
    StepMeasurement,
    Variance,
    require_carried,
    require_known_noise,
    require_variance,
)
from ptq_diffusion.correction.repair.filter import Filter, FilterInt8, patches
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.numeric.ridge import LinearMap, RidgeFit, held_out_ridge, ridge
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

ReadoutBits = Literal[8, 32]
WIDEST = 31
"""The largest side of a kernel; a regression on wider ones has thousands of regressors for each channel."""


class Regression(Correction[PathEvidence]):
    """m~ = q + K_q * q + K_x * x_t + R * h + c, fitted per step by ridge regression of m - q.

    The noise of quantized weights is a function of the input and structured in space, which PTQD's one scalar cannot
    see. Without h this is a Wiener filter of q and x_t; with h, the input of the output layer, it refits that layer for
    every step. The ridge shrinks towards doing nothing and is chosen on held-out images: even against odd ones. At a
    step where the squared error on one half of the images says that the regression of the other half is no gain, it is
    left out.

    With h of tokens, each of a patch of p x p pixels, the regression is of patches, C p^2 numbers each: R reads the
    patch's own token, as the output layer does, and K_q and K_x as many patches around as their sides reach into.

    Args:
        on_q: the side of K_q, odd; 0 leaves q out.
        on_x: the side of K_x, odd; 0 leaves x_t out.
        on_features: the side of R, odd; 0 leaves h out.
        ridges: candidates, relative to the variance of each input.
        variance: "original" keeps sigma; "rule" adds what the estimate's variance lacks,
            sigma'^2 = max(sigma^2 - [Var F(m~) - Var F(m)], 0) with F the step's mean, where the sampler adds noise.
        path: "float" fits on float trajectories, "corrected" on what the corrected steps before lead to.
        images: along the corrected path, how many images, the first ones, the float network is asked about; all if
            there are fewer or with None. The regression and its report are of these. Along float sampling m is known of
            all, so there it is None.
        readout_bits: 32 keeps R as it is fitted; 8 rounds it to integers, one scale for each output channel, and fits
            K_q, K_x and c anew to what that leaves; None without R.

    Raises:
        ValueError: a side is even or negative, there is no regressor or no ridge, fewer than 2 images, or an option is
            none of the above.
    """

    def __init__(
        self,
        on_q: int,
        on_x: int,
        on_features: int,
        ridges: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        variance: Variance = "original",
        path: PathName = "float",
        images: int | None = None,
        readout_bits: ReadoutBits | None = None,
    ) -> None:
        sides = {"on_q": on_q, "on_x": on_x, "on_features": on_features}
        for name, side in sides.items():
            if not 0 <= side <= WIDEST or (side % 2 == 0 and side > 0):
                raise ValueError(f"expected {name} to be 0 or an odd side up to {WIDEST}, such as 3, got {side}")
        if not any(sides.values()) or not ridges or not all(0 <= ridge < float("inf") for ridge in ridges):
            raise ValueError(
                f"expected a regressor, and finite ridges of at least 0, got {sides} and ridges={list(ridges)}; "
                "set one of the sides to 1 or 3"
            )
        require_variance(variance)
        self.reads, self.images_with_m = along(path, images)
        _require_readout_bits(readout_bits, on_features)
        self.on_q, self.on_x, self.on_features, self.readout_bits = on_q, on_x, on_features, readout_bits
        self.ridges, self.variance, self.keeps_sigma = tuple(ridges), variance, variance == "original"

    def check(self, steps: Table) -> None:
        require_known_noise(self.variance, steps)

    def check_images(self, images: int, channels: int) -> None:  # noqa: ARG002
        if images < 2:
            raise ValueError(f"expected at least 2 images to choose a ridge, got {images}; raise noise.images")

    def check_carried(self, steps: Table) -> None:
        require_carried(self.variance, steps)
        if self.readout_bits == 8:
            raise ValueError(
                "expected coefficients between which there are others, got a readout in 8 bits; set "
                "correction.readout_bits=32 or noise.steps=null"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:
        patch = patch_size if self.on_features else 1
        sides = reach(self.on_q, patch), reach(self.on_x, patch)
        return Additions(len(steps) * Filter.macs_of(shape, shape[0] * patch**2, sides))

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        images = evidence.paired
        if all(torch.equal(batch.q, batch.m) for batch in images):
            return StepMeasurement.of(images, (), step).correction(step.sigma)
        repairs, r2_held_out = self._filter(images)
        measurement = StepMeasurement.of(images, repairs, step)
        correction = measurement.correction(measurement.sigma(self.variance))
        return replace(correction, report=replace(correction.report, r2_held_out=r2_held_out))

    def _filter(self, batches: Sequence[PairedBatch]) -> tuple[tuple[Repair, ...], float]:
        """The regression, or no repair where on held-out images it explains nothing; and how much it explains there."""
        even, odd = reduce(lambda a, b: (a[0].merge(b[0]), a[1].merge(b[1])), map(self._moments, batches))
        if not (even.count and odd.count):
            raise ValueError("expected at least 2 images to choose a ridge, got 1; raise noise.images")
        layout = self._layout(batches[0])
        ridge_fit = held_out_ridge(even, odd, len(even.mean) - layout.channels, self.ridges)
        if ridge_fit.r2 <= 0:
            return (), ridge_fit.r2
        if self.readout_bits == 8:
            return (self._rounded(ridge_fit, even.merge(odd), layout),), ridge_fit.r2
        return (layout.kernels(ridge_fit.map),), ridge_fit.r2

    def _layout(self, batch: PairedBatch) -> "Layout":
        """The layout of regressors, of pixels, or of patches where h is read and is of tokens."""
        channels, height = batch.m.shape[1:3]
        patch = height // batch.features.shape[2] if self.on_features else 1
        own = self.on_features if patch == 1 else 1
        sides = reach(self.on_q, patch), reach(self.on_x, patch), own
        return Layout(patch, channels * patch**2, batch.features.shape[1], sides)

    @staticmethod
    def _rounded(ridge_fit: RidgeFit, moments: Moments, layout: "Layout") -> FilterInt8:
        """R on its grid, and the other kernels fitted to m - q - R * h."""
        channels = layout.channels
        others = len(ridge_fit.map.slope) - layout.features * layout.sides[2] ** 2
        readout = ridge_fit.map.slope[others:]
        scale = readout.abs().amax(0) / 127
        integers = (readout / torch.where(scale > 0, scale, 1.0)).round()
        # From (q, x_t, h, m - q) to (q, x_t, m - q - R * h).
        change = torch.zeros(others + channels, len(moments.mean), dtype=torch.float64)
        change[:others, :others] = torch.eye(others)
        change[others:, others:] = torch.cat([-(integers * scale).T, torch.eye(channels)], dim=1)
        rest = ridge(moments.mapped(change), others, ridge_fit.strength)
        kernels = layout.kernels(LinearMap(torch.cat([rest.slope, integers]), rest.intercept))
        return FilterInt8(kernels.on_q, kernels.on_x, kernels.on_features.to(torch.int8), scale, kernels.offset)

    def _moments(self, batch: PairedBatch) -> tuple[Moments, Moments]:
        """Moments of (regressors, m - q) over the images of even and over those of odd index."""
        even = batch.first % 2
        return self._half(batch, slice(even, None, 2)), self._half(batch, slice(1 - even, None, 2))

    def _half(self, batch: PairedBatch, images: slice) -> Moments:
        layout = self._layout(batch)
        q, x_t, error = (
            pixel_unshuffle(tensor[images], layout.patch) for tensor in (batch.q, batch.x_t, batch.m - batch.q)
        )
        sources = (q, "reflect"), (x_t, "reflect"), (batch.features[images], "constant")
        regressors = [
            patches(source, side, mode) for (source, mode), side in zip(sources, layout.sides, strict=True) if side > 0
        ]
        return Moments.of(torch.cat([*regressors, patches(error, 1, "constant")]).T)


@dataclass(frozen=True)
class Layout:
    """The layout of a regression's inputs.

    Args:
        patch: p, the side of the patch that an observation is of; 1 of pixels.
        channels: C p^2, the numbers of an observation of q, x_t and m.
        features: F.
        sides: of K_q, K_x and R, in patches.
    """

    patch: int
    channels: int
    features: int
    sides: tuple[int, int, int]

    def kernels(self, linear_map: LinearMap) -> Filter:
        """The rows of a slope as convolution kernels."""
        sizes = list(zip((self.channels, self.channels, self.features), self.sides, strict=True))
        rows = linear_map.slope.split([count * side**2 for count, side in sizes])
        kernels = [
            part.T.reshape(self.channels, count if side else 0, max(side, 1), max(side, 1))
            for part, (count, side) in zip(rows, sizes, strict=True)
        ]
        on_q, on_x, on_features = kernels
        return Filter(on_q, on_x, on_features, linear_map.intercept)


def reach(side: int, patch: int) -> int:
    """The side, in patches, of the neighbourhood of a patch that holds those of `side` pixels of all of its pixels."""
    return 0 if side == 0 else 1 + 2 * -(-(side // 2) // patch)


def _require_readout_bits(bits: ReadoutBits | None, on_features: int) -> None:
    if on_features and bits not in (8, 32):
        raise ValueError(f"expected readout_bits to be 8 or 32, got {bits!r}; set correction.readout_bits=32")
    if bits is not None and not on_features:
        raise ValueError(
            f"expected a readout to store in {bits} bits, got on_features=0; leave it out with ~correction.readout_bits"
        )
