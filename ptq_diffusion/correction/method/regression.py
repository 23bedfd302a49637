"""The best linear, shift-invariant estimate of the float output from all that a quantized step knows."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from ptq_diffusion.correction.contract import AskedBatch, Batch, FitPath, PathCorrection
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.correction.repair.filter import Filter, FilterInt8, patches
from ptq_diffusion.correction.repair.matching import Spectrum, distance, match
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.numeric.ridge import LinearMap, RidgeFit, held_out_ridge, ridge
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

Variance = Literal["original", "rule"]
PathName = Literal["float", "corrected"]
ReadoutBits = Literal[8, 32]


class Regression(PathCorrection):
    """m~ = q + K_q * q + K_x * x_t + R * h + c, fitted per step by ridge regression of m - q.

    The noise of quantized weights is a function of the input and structured in space, which PTQD's one scalar cannot
    see. Without h this is a Wiener filter of q and x_t; with h, the input of the output layer, it refits that layer for
    every step. The ridge shrinks towards doing nothing and is chosen on held-out images: even against odd ones. At a
    step where one half of the images says that the regression, or the matching, of the other half is no gain, it is
    left out: the regression by the squared error, the matching by the `distance` of the next states.

    Args:
        on_q: the side of K_q, odd; 0 leaves q out.
        on_x: the side of K_x, odd; 0 leaves x_t out.
        on_features: the side of R, odd; 0 leaves h out.
        ridges: candidates, relative to the variance of each input.
        matching: follow the estimate, or q where there is no regressor, by `match`, which gives it the moments that m
            has given x_t in every band of frequencies.
        variance: "original" keeps sigma; "rule" adds what the estimate's variance lacks,
            sigma'^2 = max(sigma^2 - [Var F(m~) - Var F(m)], 0) with F the step's mean, where the sampler adds noise.
        path: "float" fits on float trajectories, "corrected" on what the corrected steps before lead to; the spectrum
            that is matched is that of float sampling in both.
        images: along the corrected path the float network is asked about so many images, the first ones, all if there
            are fewer; the regression and what is reported are of these, the matching, which needs no m there, of all.
            Along float sampling m is known of all.
        readout_bits: 32 keeps R as it is fitted; 8 rounds it to integers, one scale for each output channel, and fits
            K_q, K_x and c anew to what that leaves.

    Raises:
        ValueError: a side is even or negative, there is nothing to do, no ridge, fewer than 2 images, or an option is
            none of the above.
    """

    def __init__(
        self,
        on_q: int,
        on_x: int,
        on_features: int,
        ridges: Sequence[float],
        matching: bool,
        variance: Variance,
        path: PathName,
        images: int,
        readout_bits: ReadoutBits,
    ) -> None:
        sides = {"on_q": on_q, "on_x": on_x, "on_features": on_features}
        for name, side in sides.items():
            if side < 0 or (side % 2 == 0 and side > 0):
                raise ValueError(f"expected {name} to be 0 or an odd side such as 3, got {side}")
        if not (matching or any(sides.values())) or not ridges or min(ridges) < 0:
            raise ValueError(
                "expected a regressor or matching, and ridges of at least 0, "
                f"got {sides}, matching={matching} and ridges={list(ridges)}"
            )
        if variance not in ("original", "rule"):
            raise ValueError(f"expected variance to be original or rule, got {variance!r}")
        if path not in ("float", "corrected"):
            raise ValueError(f"expected path to be float or corrected, got {path!r}")
        if images < 2:
            raise ValueError(
                f"expected at least 2 images to ask about, one for each half, got {images}; raise correction.images"
            )
        if readout_bits not in (8, 32):
            raise ValueError(f"expected readout_bits to be 8 or 32, got {readout_bits!r}")
        if readout_bits == 8 and not on_features:
            raise ValueError("expected a readout to store in 8 bits, got on_features=0; set readout_bits=32")
        self.on_q, self.on_x, self.on_features, self.readout_bits = on_q, on_x, on_features, readout_bits
        self.ridges, self.matching, self.variance, self.path = tuple(ridges), matching, variance, FitPath(path)
        self.asked = images if self.path is FitPath.CORRECTED else None

    def check_images(self, images: int, channels: int) -> None:
        if (self.on_q or self.on_x or self.on_features) and images < 2:
            raise ValueError(f"expected at least 2 images to choose a ridge, got {images}; raise noise.images")
        if self.matching:
            require_matchable(images, channels)

    def check_carried(self, steps: Table) -> None:
        if self.variance == "rule" and any(step.sigma > 0 for step in steps):
            raise ValueError(
                "expected a noise scale that another table can follow, got variance=rule; set "
                "correction.variance=original or noise.steps=null"
            )
        if self.readout_bits == 8:
            raise ValueError(
                "expected coefficients between which there are others, got a readout in 8 bits; set "
                "correction.readout_bits=32 or noise.steps=null"
            )

    def fit_step(self, asked: Sequence[AskedBatch], step: Step, others: Sequence[Batch] = ()) -> StepCorrection:
        if all(torch.equal(batch.q, batch.m) for batch in asked):
            return StepMeasurement.of(asked, (), step).correction(step.sigma)
        repairs: tuple[Repair, ...] = ()
        r2_held_out = None
        if self.on_q or self.on_x or self.on_features:
            repairs, r2_held_out = self._filter(asked)
        if self.matching:
            repairs += _matched((asked, others), repairs, step)
        measured = StepMeasurement.of(asked, repairs, step)
        found = measured.correction(measured.matched_sigma() if self.variance == "rule" else step.sigma)
        return replace(found, report=replace(found.report, r2_held_out=r2_held_out))

    def _filter(self, batches: Sequence[AskedBatch]) -> tuple[tuple[Repair, ...], float]:
        """The regression, or nothing where on held-out images it explains nothing; and how much it explains there."""
        halves: list[Moments | None] = [None, None]
        for batch in batches:
            for half, part in enumerate(self._moments(batch)):
                if part.count:  # A chunk of one image has no image in one of the halves.
                    halves[half] = part if (so_far := halves[half]) is None else so_far.merge(part)
        even, odd = halves
        if even is None or odd is None:
            raise ValueError("expected at least 2 images to choose a ridge, got 1; raise noise.images")
        channels, features = batches[0].m.shape[1], batches[0].features.shape[1]
        inputs = len(even.mean) - channels
        found = held_out_ridge(even, odd, inputs, self.ridges)
        if found.r2 <= 0:
            return (), found.r2
        if self.readout_bits == 8 and self.on_features:
            return (self._rounded(found, even.merge(odd), channels, features),), found.r2
        return (self._kernels(found.map, channels, features),), found.r2

    def _rounded(self, found: RidgeFit, moments: Moments, channels: int, features: int) -> FilterInt8:
        """R on its grid, and the others fitted to m - q - R * h."""
        others = len(found.map.slope) - features * self.on_features**2
        scale = found.map.slope[others:].abs().amax(0) / 127
        integers = (found.map.slope[others:] / torch.where(scale > 0, scale, 1.0)).round()
        # From (q, x_t, h, m - q) to (q, x_t, m - q - R * h).
        left = torch.zeros(others + channels, len(moments.mean), dtype=torch.float64)
        left[:others, :others] = torch.eye(others)
        left[others:, others:] = torch.cat([-(integers * scale).T, torch.eye(channels)], dim=1)
        rest = ridge(moments.mapped(left), others, found.strength)
        whole = LinearMap(torch.cat([rest.slope, integers]), rest.intercept)
        kernels = self._kernels(whole, channels, features)
        return FilterInt8(kernels.on_q, kernels.on_x, kernels.on_features.to(torch.int8), scale, kernels.offset)

    def _moments(self, batch: AskedBatch) -> tuple[Moments, Moments]:
        """Moments of (regressors, m - q) over the images of even and over those of odd index."""
        even = batch.first % 2
        return self._half(batch, slice(even, None, 2)), self._half(batch, slice(1 - even, None, 2))

    def _half(self, batch: AskedBatch, images: slice) -> Moments:
        regressors = [
            patches(source[images], side, mode)
            for source, side, mode in (
                (batch.q, self.on_q, "reflect"),
                (batch.x_t, self.on_x, "reflect"),
                (batch.features, self.on_features, "constant"),
            )
            if side > 0
        ]
        lacking = patches((batch.m - batch.q)[images], 1, "constant")
        return Moments.of(torch.cat([*regressors, lacking]).T)

    def _kernels(self, found: LinearMap, channels: int, features: int) -> Filter:
        """The rows of a slope as convolution kernels."""
        sizes = [(channels, self.on_q), (channels, self.on_x), (features, self.on_features)]
        rows = found.slope.split([count * side**2 for count, side in sizes])
        kernels = [
            part.T.reshape(channels, count if side else 0, max(side, 1), max(side, 1))
            for part, (count, side) in zip(rows, sizes, strict=True)
        ]
        on_q, on_x, on_features = kernels
        return Filter(on_q, on_x, on_features, found.intercept)


def require_matchable(images: int, channels: int) -> None:
    """Refuse too few images for the spectrum of both halves.

    Raises:
        ValueError: fewer than 2 (2 C + 1).
    """
    if images < (least := 2 * (2 * channels + 1)):
        raise ValueError(
            f"expected at least {least} images to match the spectrum of {channels} channels, "
            f"half of them judging the other, got {images}; raise noise.images"
        )


def _matched(batches: Sequence[Sequence[Batch]], repairs: Sequence[Repair], step: Step) -> tuple[Spectral, ...]:
    """The matching map, or nothing where one half of the images says that what the other half gives is no gain."""
    everyone = partial(chain.from_iterable, batches)
    channels, images = batches[0][0].q.shape[1], sum(len(batch.q) for batch in everyone())
    require_matchable(images, channels)
    source = _halves((batch.repaired(repairs), batch.x_t, batch.first) for batch in everyone())
    target = _halves((batch.float_m, batch.float_x_t, batch.first) for batch in everyone())
    maps = [match(*half) for half in zip(source, target, strict=True)]
    before, after = 0.0, 0.0
    for found, own, aim in zip(reversed(maps), source, target, strict=True):
        before += distance(own, aim, step)
        after += distance(own.repaired(found), aim, step)
    return (match(Spectrum.merge(*source), Spectrum.merge(*target)),) if after < before else ()


def _halves(parts: Iterable[tuple[Tensor, Tensor, int]]) -> tuple[Spectrum, Spectrum]:
    """Spectra of the images of even and of those of odd index, from (m, x_t, index of the first image) of batches."""
    halves: tuple[list[Spectrum], list[Spectrum]] = [], []
    for m, x_t, first in parts:
        for half in (0, 1):
            images = slice((first + half) % 2, None, 2)
            if len(m[images]):
                halves[half].append(Spectrum.of(m[images], x_t[images]))
    even, odd = (reduce(Spectrum.merge, half) for half in halves)
    return even, odd
