"""Streamed sums from which the residual of any k is diagnosed in closed form."""

from dataclasses import dataclass
from itertools import product
from math import factorial

import torch
from torch import Tensor

GROUPS = 8
"""The number of groups, by index modulo this: images of even index are fitted on, the odd ones held out."""
ORDER = 4
EXPONENTS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
"""Exponents of D and m in the monomials whose products are all powers up to the fourth."""
RESOLVED = 1e-6
"""Var r / (E[D^2] + E[(D - k m)^2]) at or below which rounding dominates Var r: no shape of r is reported then."""


@dataclass(frozen=True)
class HigherMoments:
    """Sums over the samples of one step, float64; merging adds them, so neither order nor split matters.

    With u = (1, D, m) at a pixel the residual is r = w . u, w = (-mu, 1, -k). So the mean product of two residuals, be
    they neighbours in space or of successive steps, is w^T (sum u u'^T) w' over their number, and powers of r are sums
    of those of D and m. Residuals are centred per channel and pooled over channels, samples and pixels.

    Args:
        powers: (GROUPS, C, 5, 5), sums of D^a m^b over the samples of a group and their pixels.
        neighbours: (2, C, 3, 3), sums of u u'^T with u' of the pixel to the right, and of the one below.
        across: (C, 3, 3), sums of u u'^T with u' of the same pixel of the same sample at the step before; 0 at the
            first step.
    """

    powers: Tensor
    neighbours: Tensor
    across: Tensor

    @classmethod
    def of(cls, terms: Tensor, before: Tensor | None, first: int) -> "HigherMoments":
        """The sums of a batch.

        Args:
            terms: u, see `terms`.
            before: u of the same samples at the step before; None at the first step.
            first: the index of the first sample.
        """
        right = _products(terms[..., :-1], terms[..., 1:])
        below = _products(terms[..., :-1, :], terms[..., 1:, :])
        across = torch.zeros_like(right) if before is None else _products(terms, before)
        return cls(powers(terms, first), torch.stack([right, below]), across)

    def merge(self, other: "HigherMoments") -> "HigherMoments":
        """The sums of both batches."""
        return HigherMoments(self.powers + other.powers, self.neighbours + other.neighbours, self.across + other.across)

    def moment(self, order: int, k: float, mu: Tensor, groups: slice = slice(None)) -> float:
        """E[(D - k m - mu)^order] over the samples of some groups, averaged over channels, (C,) mu; NaN of none."""
        sums = self.powers[groups].sum(0)
        moment = torch.zeros_like(mu)
        for a, b in product(range(order + 1), repeat=2):
            if (rest := order - a - b) >= 0:
                ways = factorial(order) // (factorial(a) * factorial(b) * factorial(rest))
                moment += ways * (-k) ** b * (-mu) ** rest * sums[:, a, b]
        return float((moment / sums[:, 0, 0]).mean())

    def centre(self, k: float) -> Tensor:
        """E[D_c] - k E[m_c], (C,)."""
        sums = self.powers.sum(0)
        return (sums[:, 1, 0] - k * sums[:, 0, 1]) / sums[:, 0, 0]

    def deviation(self, k: float) -> float | None:
        """The standard deviation of r; None where rounding hides it."""
        variance = self.moment(2, k, self.centre(k))
        zero = torch.zeros_like(self.centre(k))
        power = self.moment(2, 0.0, zero) + self.moment(2, k, zero)
        return float(variance**0.5) if variance > RESOLVED * power else None

    def standardized(self, order: int, k: float) -> float | None:
        """E[r^order] / E[r^2]^(order / 2): 0 of a normal residual for 3, and 3 for 4; None where rounding hides r."""
        deviation = self.deviation(k)
        return None if deviation is None else self.moment(order, k, self.centre(k)) / deviation**order

    def neighbour_correlation(self, k: float) -> float | None:
        """The correlation of r with r one pixel to the right and one below, their mean.

        None of images of one pixel or without a residual.
        """
        deviation, pairs = self.deviation(k), self.neighbours[:, 0, 0, 0]
        if deviation is None or not pairs.all():
            return None
        w = _weights(self.centre(k), k)
        return float((torch.einsum("ci,pcij,cj->p", w, self.neighbours, w) / len(w) / pairs).mean()) / deviation**2

    def step_correlation(self, k: float, k_before: float, deviation_before: float | None) -> float | None:
        """The correlation of r with r of the step before at the same pixel.

        None at the first step or where there is no residual.
        """
        deviation, count = self.deviation(k), float(self.across[0, 0, 0])
        if not (deviation and deviation_before and count):
            return None
        before = self.across[:, 0] / count
        w = _weights(before[:, 1] - k_before * before[:, 2], k_before)
        products = torch.einsum("ci,cij,cj->", _weights(self.centre(k), k), self.across, w)
        return float(products) / len(self.across) / count / (deviation * deviation_before)


def terms(m: Tensor, q: Tensor) -> Tensor:
    """u = (1, D, m) at every pixel, (C, 3, B, H, W) float64, of outputs (B, C, H, W)."""
    noise, m = (x.transpose(0, 1).double() for x in (q - m, m))
    return torch.stack([torch.ones_like(noise), noise, m], dim=1)


def powers(terms: Tensor, first: int) -> Tensor:
    """Sums of D^a m^b by group, (GROUPS, C, 5, 5), those of a + b <= 4, where the first sample has this index."""
    one, noise, m = terms.flatten(3).unbind(1)
    monomials = torch.stack([one, noise, m, noise * noise, noise * m, m * m], dim=2)
    products = (monomials @ monomials.mT).transpose(0, 1)
    sums = torch.zeros(GROUPS, *products.shape[1:], dtype=torch.float64)
    sums.index_add_(0, (first + torch.arange(len(products))) % GROUPS, products)
    by_exponent = torch.zeros(*sums.shape[:2], ORDER + 1, ORDER + 1, dtype=torch.float64)
    for (i, (a, b)), (j, (c, d)) in product(enumerate(EXPONENTS), repeat=2):
        by_exponent[:, :, a + c, b + d] = sums[:, :, i, j]
    return by_exponent


def reliability(powers: Tensor) -> float | None:
    """The share of k^2 that is no sampling error, 0 to 1, from the k_g of every group of samples.

    Groups are independent, so the mean of k_g k_h over g != h estimates the square of the true k without bias; over the
    square of the mean k_g it is the factor that shrinks k best (James and Stein, 1961, positive part). It is 1 where
    all groups agree. None of fewer than two groups, or where k is 0.
    """
    k = group_coefficients(powers)
    if len(k) < 2 or float(k.sum()) == 0:
        return None
    pair_mean = (k.sum().square() - k.square().sum()) / (len(k) * (len(k) - 1))
    return max(float(pair_mean / k.mean().square()), 0.0)


def group_coefficients(powers: Tensor) -> Tensor:
    """k = Cov(D, m) / Var m of every group whose m varies, (G,) with G <= GROUPS, from `powers` (GROUPS, C, 5, 5)."""
    sums = powers[powers[:, 0, 0, 0] > 0]
    mean = sums / sums[:, :, :1, :1]
    covariance = (mean[:, :, 1, 1] - mean[:, :, 1, 0] * mean[:, :, 0, 1]).sum(1)
    variance = (mean[:, :, 0, 2] - mean[:, :, 0, 1].square()).sum(1)
    return covariance[variance > 0] / variance[variance > 0]


def _weights(mu: Tensor, k: float) -> Tensor:
    """The weights w, (C, 3)."""
    return torch.stack([-mu, torch.ones_like(mu), torch.full_like(mu, -k)], dim=1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Sums of u u'^T over samples and pixels, (C, 3, 3)."""
    return a.flatten(2) @ b.flatten(2).mT
