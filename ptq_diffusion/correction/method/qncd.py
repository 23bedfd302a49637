"""QNCD: the bias of the output, estimated while sampling."""

import dataclasses

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.method.none import NoCorrection
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class QNCD(Correction[MomentEvidence]):
    """m~ = q - d with d the mean of q's error, estimated every few steps by noising x_0 again with known noise.

    Chu et al., QNCD, ACM MM 2024, arXiv 2403.19140, its estimation at run time; its smoothing of embeddings is another
    matter. d is of every image and channel, see `estimated_bias`, and is taken off until the next estimate. Nothing is
    fitted: the statistics are only reported.

    The authors' release (huanpengchu/QNCD, plms.py) noises the next state by one step, averages over the whole batch,
    and begins half an interval later. An image must not depend on its batch here, and the mean of one image's own noise
    is no error; so all noise is known. What is known is not all that there is to see, though: the x_0 that a biased q
    implies is biased, which hides of the bias the more the less of x_t is signal (on Gaussian data of variance s^2 d
    finds the share abar s^2 / (abar s^2 + 1 - abar) of it), and how the network answers an x_0 that has drifted from
    the data counts as its bias.

    Args:
        every: steps from an estimate to the next, which each cost an evaluation of the network.

    Raises:
        ValueError: every is below 1.
    """

    reads = Reads.MOMENTS

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise ValueError(f"expected every to be at least 1, got {every}")
        self.every = every

    def check_single_evaluation(self) -> None:
        raise ValueError(
            "expected a correction that evaluates the network once a step, as pipelines and graphs do, got qncd; draw "
            "its images with goal=samples_corrected"
        )

    def check_carried(self, steps: Table) -> None:  # noqa: ARG002
        raise ValueError(
            "expected a correction with coefficients to carry onto another table, qncd has none: it estimates on the "
            "way; set noise.steps=null"
        )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions(evaluations=len(steps[:: self.every]))

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        return dataclasses.replace(NoCorrection().fit_step(evidence, step), estimates=step.i % self.every == 0)
