"""One row of a sampler's table."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """From x_t to x_s:  x_s = c_x x_t + c_m m + c_0 x_0 + sigma z  with  x_0 = clip(p_x x_t + p_m m).

    m is the network's native output (epsilon, v or x0) and z standard normal noise.

    Args:
        i: the row, 0 at t = T.
        t: the time that the network is told.
        c_x: coefficient of x_t beside the one within x_0.
        c_m: coefficient of m beside the one within x_0.
        c_0: coefficient of the clipped x_0.
        p_x: coefficient of x_t in x_0.
        p_m: coefficient of m in x_0.
        sigma: standard deviation of the noise that is added.
        clip: x_0 is clamped to [-clip, clip]; None leaves it as it is.
        abar_t: cumulative alpha at t.
        direction: of DDIM, the coefficient sqrt(1 - abar_s - sigma^2) of epsilon that is inside c_x and c_m; None for
            a sampler that is not of this form.
    """

    i: int
    t: float
    c_x: float
    c_m: float
    c_0: float
    p_x: float
    p_m: float
    sigma: float
    clip: float | None
    abar_t: float
    direction: float | None

    @property
    def gain(self) -> float:
        """b = d x_s / d m without the clip: what an error of the network's output is multiplied by."""
        return self.c_m + self.c_0 * self.p_m

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio of the forward process, SNR_F(t) = abar_t / (1 - abar_t)."""
        return self.abar_t / (1 - self.abar_t)

    def predict_x_0(self, x_t: Tensor, m: Tensor) -> Tensor:
        """x_0 as the network's output m implies it, clipped."""
        x_0 = self.p_x * x_t + self.p_m * m
        return x_0 if self.clip is None else x_0.clamp(-self.clip, self.clip)

    def mean(self, x_t: Tensor, m: Tensor) -> Tensor:
        """x_s before noise is added."""
        return self.c_x * x_t + self.c_m * m + self.c_0 * self.predict_x_0(x_t, m)

    def with_direction_of(self, sigma: float) -> "Step":
        """The step whose epsilon coefficient is sqrt(1 - abar_s - sigma'^2) of another sigma', its own sigma kept.

        This is what the release of PTQD samples with; the paper keeps the original coefficients.

        Raises:
            ValueError: the sampler is not of DDIM's form.
        """
        if self.direction is None:
            raise ValueError(
                "direction=reduced needs a DDIM sampler (sampler=ddim); this sampler has no direction term"
            )
        if self.direction == 0:
            return self
        ratio = math.sqrt(self.direction**2 + (self.sigma**2 - sigma**2)) / self.direction
        return dataclasses.replace(self, c_x=self.c_x * ratio, c_m=self.c_m * ratio, direction=self.direction * ratio)


def fingerprint(steps: Sequence[Step]) -> str:
    """Sixteen hex digits that two tables share only if they are the same, clipping included."""
    text = json.dumps([dataclasses.asdict(step) for step in steps])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
