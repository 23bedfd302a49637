"""The output mapped to the second moments of float sampling, in every band of frequencies."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Literal

import torch

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, PathName, along
from ptq_diffusion.correction.evidence import PathBatch, PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import (
    StepMeasurement,
    Variance,
    require_carried,
    require_known_noise,
    require_variance,
)
from ptq_diffusion.correction.repair.matching import Spectrum, distance, match, match_image
from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

LastStep = Literal["output", "image"]


class Matched(Correction[PathEvidence]):
    """m~ = A_w q + B_w x_t + c in every band w: the moments that m has given x_t, by the smallest move; see `match`.

    At a step where the `distance` of the next states says on one half of the images that the map of the other half is
    no gain, it is left out.

    Args:
        variance: "original" keeps sigma; "rule" takes sigma'^2 = max(sigma^2 - [Var F(m~) - Var F(m)], 0) with F the
            step's mean, where the sampler adds noise.
        path: "float" fits on float trajectories, "corrected" on what the corrected steps before lead to; the spectrum
            that is matched is that of float sampling in both.
        images: along the corrected path, how many images, the first ones, the float network is asked about; all if
            there are fewer or with None. The report is of these, and the map, which needs no m there, of all images.
            Along float sampling m is known of all, so there it is None.
        last_step: "output" matches the last step as all others; "image" moves the image that it makes to the spectrum
            of float images, see `match_image`, as no step is left that would make up for a drift of the states.

    Raises:
        ValueError: fewer than 2 images, or an option is none of the above.
    """

    def __init__(
        self,
        variance: Variance = "original",
        path: PathName = "corrected",
        images: int | None = 64,
        last_step: LastStep = "output",
    ) -> None:
        require_variance(variance)
        if last_step not in ("output", "image"):
            raise ValueError(f"expected last_step to be output or image, got {last_step!r}")
        self.reads, self.images_with_m = along(path, images)
        self.variance, self.keeps_sigma, self.last_step = variance, variance == "original", last_step

    def check(self, steps: Table) -> None:
        require_known_noise(self.variance, steps)
        if self.last_step == "image" and any(steps[-1].c_0[1:]):
            raise ValueError(
                "expected a last step that reads its own output alone with last_step=image, got one that reads earlier "
                "predictions of x_0; set last_step=output"
            )

    def check_images(self, images: int, channels: int) -> None:
        _require_matchable(images, channels)

    def check_carried(self, steps: Sequence[Step]) -> None:
        require_carried(self.variance, steps)
        if self.last_step == "image":
            raise ValueError(
                "expected maps that another table can follow, got last_step=image, a map of one table's last step; set "
                "last_step=output or noise.steps=null"
            )

    def check_other_guidance(self) -> None:
        if self.last_step == "image":
            raise ValueError(
                "expected a last step that matches the output where noise.guidance is another scale than that of the "
                "images, got last_step=image, which would give them the spectrum of images of that scale; set "
                "last_step=output or noise.guidance=null"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions(len(steps) * Spectral.macs_of(shape))

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        images = evidence.paired
        matches_image = evidence.is_last and self.last_step == "image"
        # An output without noise leaves nothing to match, but states may have drifted before it.
        if not matches_image and all(torch.equal(batch.q, batch.m) for batch in images):
            return StepMeasurement.of(images, (), step).correction(step.sigma)
        rule = partial(match_image, step=step) if matches_image else match
        measurement = StepMeasurement.of(images, _matched(evidence, step, rule), step)
        return measurement.correction(measurement.sigma(self.variance))


def _require_matchable(images: int, channels: int) -> None:
    """Refuse too few images for the spectrum of both halves.

    Raises:
        ValueError: fewer than 2 (2 C + 1).
    """
    if images < (least := 2 * (2 * channels + 1)):
        raise ValueError(
            f"expected at least {least} images to match the spectrum of {channels} channels, "
            f"half of them held out to judge, got {images}; raise noise.images"
        )


def _matched(
    evidence: PathEvidence, step: Step, rule: Callable[[Spectrum, Spectrum], Spectral]
) -> tuple[Spectral, ...]:
    """The matching map, or none where one half of the images says that the map of the other half is no gain."""
    channels, images = evidence.paired[0].q.shape[1], sum(len(batch.q) for batch in evidence.batches())
    _require_matchable(images, channels)
    sources, targets = _halves(evidence.batches())
    maps = [rule(*half) for half in zip(sources, targets, strict=True)]
    before, after = 0.0, 0.0
    for other_map, source, target in zip(reversed(maps), sources, targets, strict=True):
        before += distance(source, target, step)
        after += distance(source.repaired(other_map), target, step)
    return (rule(Spectrum.merge(*sources), Spectrum.merge(*targets)),) if after < before else ()


def _halves(batches: Iterable[PathBatch]) -> tuple[list[Spectrum], list[Spectrum]]:
    """The spectra of (q, x_t), and those of float sampling, over the images of even and over those of odd index."""
    halves: tuple[list[tuple[Spectrum, Spectrum]], ...] = [], []
    for batch in batches:
        for parity, half in enumerate(halves):
            images = slice((batch.first + parity) % 2, None, 2)
            if len(batch.q[images]):
                source = Spectrum.of(batch.q[images], batch.x_t[images])
                half.append((source, Spectrum.of(batch.float_m[images], batch.float_x_t[images])))
    merged = [[reduce(Spectrum.merge, column) for column in zip(*half, strict=True)] for half in halves]
    return [source for source, _ in merged], [target for _, target in merged]
