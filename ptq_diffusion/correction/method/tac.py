"""TAC: a gain for every step, and the drift of the states' mean taken out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import PairedBatch, PathBatch, PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class TAC(Correction[PathEvidence]):
    """m~ = K q - c along the corrected path (Yao et al., Timestep-Aware Correction, ECCV 2024).

    The gain minimises sum_n |K q_n - m_n|^2 (1 + relative E|m|^2 / |m_n|^2), a convex mix of the squared and the
    relative error of every image n. The bias of the network's input, the mean over images of the state on the
    quantized path less the state of float sampling, is taken out per channel. Subtracting it from the next state is,
    where the step is affine, the same as the offset c of this step's output, which is how it is done here; it acts at
    eta = 0 too. Where x_0 is clipped it is not: at a saturated pixel the offset moves the state by another factor than
    the gain, of the other sign even. So a channel's offset is kept only if, clip included, it brings the mean nearer.

    This is our reading, and the authors published no code. A summary of the paper and an implementation of others
    (OptiSys-ZJU/segquant) have a gain for every channel, the relative error per element with those of small |m| left
    out, the gain drawn towards 1, and the bias subtracted from the state itself, per pixel.

    Args:
        relative: the weight of the relative error, 0 or more.
        input_bias: correct the input's bias.

    Raises:
        ValueError: the weight is negative.
    """

    reads = Reads.CORRECTED_PATH

    def __init__(self, relative: float = 1.0, input_bias: bool = True) -> None:
        if relative < 0:
            raise ValueError(f"expected relative to be at least 0, got {relative}")
        self.relative, self.input_bias = relative, input_bias

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions(len(steps) * Affine.macs_of(shape))

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        images = evidence.paired
        gain = self._gain(images, step)
        drift = torch.zeros(images[0].m.shape[1], dtype=torch.float64)
        if self.input_bias and step.gain != 0:
            ahead = self._mean_drift(images, step, gain, drift)
            offset = ahead / step.gain
            nearer = self._mean_drift(images, step, gain, offset).abs() < ahead.abs()
            drift = torch.where(nearer, offset, drift)
        # K q - c = (q - mu) / (1 + k).
        repair = Affine(torch.tensor(1 / gain - 1, dtype=torch.float64), drift / gain)
        return StepMeasurement.of(images, (repair,), step).correction(step.sigma)

    def _mean_drift(self, batches: Sequence[PathBatch], step: Step, gain: float, offset: Tensor) -> Tensor:
        """The mean of the next state less that of float sampling, (C,)."""
        pairs = ((gain * b.q - offset.to(b.q)[:, None, None], b) for b in batches)
        return _mean(step.mean(b.x_t, m, b.past) - step.mean(b.float_x_t, b.float_m, b.float_past) for m, b in pairs)

    def _gain(self, batches: Sequence[PairedBatch], step: Step) -> float:
        products = [torch.stack([_dot(b.q, b.m), _dot(b.q, b.q), _dot(b.m, b.m)], dim=1) for b in batches]
        q_m, q_q, m_m = torch.cat(products).unbind(1)
        if not m_m.all():
            raise ValueError(
                f"expected a float output that is not zero, at t = {step.t} it is zero for {int((m_m == 0).sum())} of "
                f"{len(m_m)} images, to which no error is relative; measure other samples or use correction=none"
            )
        weights = 1 + self.relative * m_m.mean() / m_m
        gain = float((weights * q_m).sum() / (weights * q_q).sum())
        if not 0 < gain < float("inf"):
            raise ValueError(
                f"expected a positive gain, at t = {step.t} it is {gain:.3g}: the quantized output points away from "
                "the float one or is zero; raise the number of bits"
            )
        return gain


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of every image, (B,) float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """The mean of every channel over the images of all batches, (C,) float64; one batch is held at a time."""
    sums, counts = zip(*((part.double().mean((2, 3)).sum(0), len(part)) for part in parts), strict=True)
    return torch.stack(sums).sum(0) / sum(counts)
