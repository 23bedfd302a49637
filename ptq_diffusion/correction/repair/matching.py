"""Matching of second moments, which restores to an estimate the spectrum that least squares takes from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.numeric.spectrum import RINGS, cosine_transform, radial_bands
from ptq_diffusion.numeric.transport import squared_wasserstein, symmetric_root, transport_map
from ptq_diffusion.sampler.step import Step

SHRINKAGE = 1e-3
"""White noise added to both covariances, relative to the variance of m given x_t: few images fill a low band."""


@dataclass(frozen=True)
class Spectrum:
    """Second moments of an output and its state, (m, x_t), in every band of the cosine transform, streamed.

    Args:
        count: images N.
        mean: (2C,) float64, the mean of every channel.
        power: (bands, 2C, 2C) float64, about the mean, averaged over images and the coefficients of a band.
        sizes: (bands,) int64, the coefficients of every band, as many in all as an image has pixels.
    """

    count: int
    mean: Tensor
    power: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, m: Tensor, x_t: Tensor) -> "Spectrum":
        """The moments of a batch, each (B, C, H, W)."""
        pair = torch.cat([m, x_t], dim=1).double()
        mean = pair.mean((0, 2, 3))
        bands = radial_bands(*m.shape[-2:], RINGS).flatten()
        sizes = bands.bincount()
        spectrum = cosine_transform(pair - mean[:, None, None]).transpose(0, 1).flatten(2)
        # One product for each band is several times faster than one for each coefficient.
        parts = spectrum[..., bands.argsort(stable=True)].split(sizes.tolist(), dim=-1)
        power = torch.stack([(rows := part.flatten(1)) @ rows.T for part in parts])
        return cls(len(m), mean, power / (len(m) * sizes[:, None, None]), sizes)

    def merge(self, other: "Spectrum") -> "Spectrum":
        """The moments of both batches."""
        count = self.count + other.count
        share = other.count / count
        shift = other.mean - self.mean
        power = self.power * (1 - share) + other.power * share
        power[0] += torch.outer(shift, shift) * share * (1 - share) * self.sizes.sum()
        return Spectrum(count, self.mean + shift * share, power, self.sizes)

    def repaired(self, repair: Spectral) -> "Spectrum":
        """The moments of (m~, x_t) with m~ = A m + B x_t + c."""
        c = len(self.mean) // 2
        rows = torch.zeros_like(self.power)
        rows[:, :c, :c], rows[:, :c, c:] = repair.on_q, repair.on_x
        rows[:, c:, c:] = torch.eye(c, dtype=torch.float64)
        mean = rows[0] @ self.mean
        mean[:c] += repair.offset
        return Spectrum(self.count, mean, rows @ self.power @ rows.mT, self.sizes)

    def next_state(self, step: Step) -> tuple[Tensor, Tensor]:
        """Mean (C,) and covariances (bands, C, C) of b m + a x_t, a step's mean without clip and earlier x_0."""
        c = len(self.mean) // 2
        eye = torch.eye(c, dtype=torch.float64)
        row = torch.cat([step.gain * eye, step.carry * eye], dim=1)
        return row @ self.mean, row @ self.power @ row.T

    @property
    def linear(self) -> Tensor:
        """L, (bands, C, C): the regression of m on x_t, the least one where the covariance of x_t is singular."""
        c = len(self.mean) // 2
        # Not lstsq, whose last bits depend on where in memory a tensor lies.
        return self.power[:, :c, c:] @ torch.linalg.pinv(self.power[:, c:, c:], hermitian=True)

    @property
    def rest(self) -> Tensor:
        """The covariance of m - L x_t, (bands, C, C)."""
        c = len(self.mean) // 2
        return self.power[:, :c, :c] - self.linear @ self.power[:, c:, :c]


def match(source: Spectrum, target: Spectrum) -> Spectral:
    """The map of (m^, x_t) that has the moments of m given x_t in every band and moves m^ the least.

    Split m and m^ into what is linear in x_t and a rest, m = L x_t + e and m^ = L^ x_t + e^. Then m~ = L x_t + A e^
    with the optimal transport A, `transport_map`, from Cov e^ to Cov e. Where x_t has the spectrum of float sampling,
    so has the next state, affine in (m~, x_t), at every eta and without a change of sigma; a drift of x_t itself stays.
    A least-squares estimate lacks the variance that it cannot explain, which over the steps becomes blur; PTQD's has
    too much.

    Args:
        source: of the estimate m^ and the states that it was made on.
        target: of the float output and the states of float sampling.

    Raises:
        ValueError: so few images that the covariances of the lowest band are singular.
    """
    c = len(source.mean) // 2
    if source.count < 2 * c + 1:
        raise ValueError(
            f"expected at least {2 * c + 1} images to match the spectrum of {c} channels, got {source.count}; "
            "raise noise.images"
        )
    white = SHRINKAGE * torch.eye(c, dtype=torch.float64) * _mean_variance(target.rest)
    gain = transport_map(source.rest + white, target.rest + white)
    on_x = target.linear - gain @ source.linear
    return Spectral(gain, on_x, target.mean[:c] - gain[0] @ source.mean[:c] - on_x[0] @ source.mean[c:])


def match_image(source: Spectrum, target: Spectrum, step: Step) -> Spectral:
    """The map of (m^, x_t) after which the next state has the spectrum of float sampling, though x_t has drifted.

    Behind `match` a drift of x_t itself stays. Here the next state that `match` leads to, x^_s = a x_t + b m^, is moved
    on by G, the optimal transport to the next states of float sampling in every band: x~_s = G x^_s + h. The output
    that a step makes x~_s of is m~ = (x~_s - a x_t) / b. The clip of a step is left out. The drift that is taken out is
    that of the states that the map is fitted on.

    Args:
        source: of the estimate m^ and the states that it was made on.
        target: of the float output and the states of float sampling.
        step: what makes the next state of them, b not 0.

    Raises:
        ValueError: see `match`.
    """
    assert step.gain != 0, "a step whose next state does not depend on the output cannot move it"
    matched = match(source, target)
    (mean, covariances), (aim, aims) = source.repaired(matched).next_state(step), target.next_state(step)
    eye = torch.eye(len(mean), dtype=torch.float64)
    white = SHRINKAGE * eye * _mean_variance(aims)
    gain = transport_map(covariances + white, aims + white)
    on_x = gain @ matched.on_x + (gain - eye) * (step.carry / step.gain)
    return Spectral(gain @ matched.on_q, on_x, gain[0] @ matched.offset + (aim - gain[0] @ mean) / step.gain)


def distance(source: Spectrum, target: Spectrum, step: Step) -> float:
    """The squared Wasserstein distance, per pixel, of the next state to its target, both taken as Gaussian.

    The clip of a step is left out, and so are earlier predictions of x_0 that a multistep sampler reads.

    Args:
        source: of the output in use and the states that it was made on.
        target: of the float output and the states of float sampling.
        step: what makes the next state of them.
    """
    (mean, covariances), (aim, aims) = source.next_state(step), target.next_state(step)
    gaps = squared_wasserstein(torch.zeros(()), aims, covariances, symmetric_root(covariances))
    return float((mean - aim).square().sum() + (gaps * source.sizes).sum() / source.sizes.sum())


def _mean_variance(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=0)[..., None, None]
