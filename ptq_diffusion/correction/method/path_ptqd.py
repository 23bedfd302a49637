"""PTQD measured along a path: what the corrections before it leave of the noise is split, divided out and absorbed."""

from dataclasses import replace
from functools import reduce

import torch

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, PathName, along
from ptq_diffusion.correction.evidence import MomentEvidence, PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class PathPTQD(Correction[PathEvidence]):
    """m~ = (q - mu) / (1 + k) and PTQD's sigma', with the noise D = q - m of images along a path, at every step.

    PTQD measures D along float sampling. Behind rescaled layers, as a link of a `Chain`, D is what these leave, on the
    states that the corrected steps before lead to. Where the sampler adds noise, the signal in q is brought back to
    its full size and the rest of D takes the place of sampler noise; `Matched` gives signal and noise together the
    spectrum of m, so that the signal in it is smaller than in m.

    Args:
        terms: which of PTQD's terms act, and how.
        path: "float" measures on float trajectories, "corrected" on what the corrected steps before lead to.
        images: along the corrected path, how many images, the first ones, the float network is asked about and D is
            measured on; all if there are fewer or with None. Along float sampling m is known of all, so there it is
            None.

    Raises:
        ValueError: fewer than 2 images, no such path, or terms that make a table of their own (direction=reduced).
    """

    option_to_keep_sigma = "terms.variance=off"

    def __init__(self, terms: PTQD, path: PathName = "corrected", images: int | None = 64) -> None:
        if terms.direction == "reduced":
            raise ValueError(
                "expected PTQD's terms on the sampler's own table along a path, got direction=reduced, which makes "
                "another; set direction=original"
            )
        self.reads, self.images_with_m = along(path, images)
        self.terms, self.keeps_sigma = terms, terms.variance == "off"

    def check(self, steps: Table) -> None:
        self.terms.check(steps)

    def check_carried(self, steps: Table) -> None:
        self.terms.check_carried(steps)

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:
        return self.terms.additions(steps, shape, patch_size)

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        images = evidence.paired
        moments = reduce(StepMoments.merge, (StepMoments.of(batch.m, batch.q, batch.x_t) for batch in images))
        if all(torch.equal(batch.q, batch.m) for batch in images):
            unchanged = StepMeasurement.of(images, (), step).correction(step.sigma)
            # A multistep sampler meets the error of the step before here, too, for which sigma' is to make room.
            absorbed = 0 if self.terms.variance == "off" else 1
            return replace(unchanged, residual=Residual(0.0, absorbed, slope=moments.slope))
        fitted = self.terms.fit_step(MomentEvidence(moments), step)
        measured = StepMeasurement.of(images, fitted.repairs, step).correction(fitted.sigma)
        return replace(measured, residual=fitted.residual)
