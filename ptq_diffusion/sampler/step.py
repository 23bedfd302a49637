"""One row of a sampler's table, and the update from one state to the next."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """The state of sampling between two steps.

    Args:
        x: x_t, (B, C, H, W).
        past: the predictions of x_0 that later steps read, the latest first, each (B, C, H, W); none of a one-step
            sampler.
    """

    x: Tensor
    past: tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """The step to x_s:  x_s = c_x x_t + c_m m + sum_j c_0[j] x_0(t + j) + sigma z  with  x_0 = clip(p_x x_t + p_m m).

    m is the network's native output (epsilon, v, x0 or the velocity of a flow), z standard normal noise, and x_0(t + j)
    the prediction that was made j steps before.

    Args:
        i: the row, 0 at t = T.
        t: the time that the network is told.
        input_scale: what x_t is multiplied with before the network sees it.
        c_x: coefficient of x_t beside the one within x_0.
        c_m: coefficient of m beside the one within x_0.
        c_0: coefficients of the clipped predictions of x_0, this step's first. A step hands on one prediction for every
            coefficient behind the first; where none was made yet, as at t = T, the coefficient is 0.
        p_x: coefficient of x_t in x_0.
        p_m: coefficient of m in x_0.
        sigma: standard deviation of the noise that is added; of a learned variance the lower end.
        clip: x_0 is clamped to [-clip, clip]; None leaves it as it is.
        signal: coefficient of x_0 in x_t, sqrt(abar_t).
        noise: coefficient of epsilon in x_t, sqrt(1 - abar_t).
        direction: of DDIM, the coefficient sqrt(1 - abar_s - sigma^2) of epsilon that is inside c_x and c_m; None for
            a sampler that is not of this form.
        sigma_high: of a learned variance the upper end, see `spread`; None where the sampler knows its noise.
    """

    i: int
    t: float
    input_scale: float
    c_x: float
    c_m: float
    c_0: tuple[float, ...]
    p_x: float
    p_m: float
    sigma: float
    clip: float | None
    signal: float
    noise: float
    direction: float | None
    sigma_high: float | None = None

    @property
    def gain(self) -> float:
        """The gain b = d x_s / d m without the clip, the factor of an error of the network's output."""
        return self.c_m + self.c_0[0] * self.p_m

    @property
    def carry(self) -> float:
        """The carry a = d x_s / d x_t at a fixed m, without the clip, the factor of an error of the state."""
        return self.c_x + self.c_0[0] * self.p_x

    @property
    def abar_t(self) -> float:
        """Signal power; of a process that preserves variance the cumulative alpha of the level that the step starts at.

        Some schedulers put the first level beside that of the time which they tell the network.
        """
        return self.signal**2

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio of the forward process, SNR_F(t) = signal^2 / noise^2."""
        return self.signal**2 / self.noise**2

    @property
    def is_learned(self) -> bool:
        """Whether the network says the variance of the noise that is added."""
        return self.sigma_high is not None

    def spread(self, variance: Tensor | None) -> float | Tensor:
        """The standard deviation of the noise that is added: sigma, or a learned one, sigma^(1 - f) sigma_high^f.

        f = (variance + 1) / 2 at every pixel, Nichol and Dhariwal, ICML 2021, arXiv 2102.09672, equation 15.

        Args:
            variance: what the network says of it, (B, C, H, W); None of one that says nothing.

        Raises:
            ValueError: the variance is learned, and the network says nothing of it.
        """
        if self.sigma_high is None:
            return self.sigma
        if variance is None:
            raise ValueError(
                f"expected the network's variance beside its output at step {self.i} (t = {self.t}), which "
                "variance_type=learned_range reads, got none; set +sampler.scheduler.variance_type=fixed_small"
            )
        return self.sigma * torch.exp((variance + 1) / 2 * math.log(self.sigma_high / self.sigma))

    def joined(self, m: Tensor, variance: Tensor | None) -> Tensor:
        """m, (B, C, H, W), and where the variance is learned the network's behind it, (B, 2 C, H, W)."""
        return torch.cat([m, variance], dim=1) if self.is_learned and variance is not None else m

    def parted(self, answer: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """The inverse of `joined`: m, and a learned variance; a variance that is not read is dropped."""
        m, variance = answer[:, :channels], answer[:, channels:]
        return m, variance if self.is_learned and variance.shape[1] else None

    def predict_x_0(self, x_t: Tensor, m: Tensor) -> Tensor:
        """The prediction of x_0 that the network's output m implies, clipped."""
        x_0 = self.p_x * x_t + self.p_m * m
        return x_0 if self.clip is None else x_0.clamp(-self.clip, self.clip)

    def mean(self, x_t: Tensor, m: Tensor, past: Sequence[Tensor] = ()) -> Tensor:
        """The mean F(m): x_s before noise is added.

        Args:
            x_t: the state, (B, C, H, W).
            m: the output there, (B, C, H, W).
            past: earlier predictions of x_0, the latest first.

        Raises:
            ValueError: the step reads earlier predictions than there are.
        """
        return self._mean(x_t, m, (self.predict_x_0(x_t, m), *past))

    def advance(self, state: State, m: Tensor, sigma: float | Tensor, z: Tensor) -> State:
        """The state behind this step.

        Args:
            state: before it.
            m: the output to use there, (B, C, H, W).
            sigma: the standard deviation of the noise, the table's or another, one for all or of every pixel.
            z: standard normal noise, (B, C, H, W).

        Raises:
            ValueError: the step reads earlier predictions than the state holds.
        """
        predictions = (self.predict_x_0(state.x, m), *state.past)
        return State(self._mean(state.x, m, predictions) + sigma * z, predictions[: len(self.c_0) - 1])

    def _mean(self, x_t: Tensor, m: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        if any(self.c_0[len(predictions) :]):
            raise ValueError(
                f"expected {len(self.c_0) - 1} earlier predictions of x_0 at step {self.i} (t = {self.t}), got "
                f"{len(predictions) - 1}; begin at the first step of the table and take every one"
            )
        x_s = self.c_x * x_t + self.c_m * m
        # Not strict: at the first steps of a table its last coefficients, which are 0, have no prediction yet.
        for c, x_0 in zip(self.c_0, predictions, strict=False):
            x_s = x_s + c * x_0
        return x_s

    def with_direction_of(self, sigma: float) -> "Step":
        """The step whose epsilon coefficient is sqrt(1 - abar_s - sigma'^2) of another sigma', its own sigma kept.

        This is what the release of PTQD samples with; the paper keeps the original coefficients.

        Raises:
            ValueError: the sampler is not of DDIM's form, or the step has noise alone and no direction to change.
        """
        if self.direction == 0 and self.sigma > 0:
            raise ValueError(
                f"expected a coefficient of epsilon to change with direction=reduced, got 0 beside fresh noise at "
                f"t = {self.t}; set correction.direction=original"
            )
        if self.direction is None:
            raise ValueError(
                "direction=reduced needs a DDIM sampler (sampler=ddim); this sampler has no direction term"
            )
        if self.direction == 0:
            return self
        ratio = math.sqrt(self.direction**2 + (self.sigma**2 - sigma**2)) / self.direction
        return dataclasses.replace(self, c_x=self.c_x * ratio, c_m=self.c_m * ratio, direction=self.direction * ratio)
