"""Classifier-free guidance: two forwards, with and without a condition, combined to one output."""

import hashlib
import json

import torch
from torch import Tensor, nn

from ptq_diffusion.artefact.digest import tensors_digest
from ptq_diffusion.model.condition import Condition, concatenated
from ptq_diffusion.model.denoiser import Denoiser, Output, Timestep, WrappedDenoiser


class Guided(WrappedDenoiser):
    """m = m_null + scale (m_cond - m_null) (Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598).

    Both are asked in one batch of 2 B rows, those of the null condition first. At scale 1, and at times outside of the
    interval (Kynkaanniemi et al., NeurIPS 2024, arXiv 2404.07724), only the conditional rows are asked. Quantization
    noise is that of m, and so are moments, corrections and features.

    Args:
        denoiser: the network with its condition, float or quantized.
        null: the condition of one sample that means none: no class, the empty or a negative prompt.
        scale: 1 is no guidance.
        interval: the first and the last t / T at which guidance acts, 0 <= low <= high <= 1.

    Raises:
        ValueError: the null condition is not of one sample, the scale is not finite, or the interval is none in [0, 1].
    """

    def __init__(self, denoiser: Denoiser, null: Condition, scale: float, interval: tuple[float, float]) -> None:
        super().__init__(denoiser)
        low, high = interval
        if len(null) != 1:
            raise ValueError(f"expected the null condition of one sample, got that of {len(null)}; take a row of it")
        if not abs(scale) < float("inf"):
            raise ValueError(f"expected a finite scale of guidance, got {scale}; give another")
        require_interval(low, high)
        self.scale, self.interval = float(scale), (float(low), float(high))
        for name, tensor in null.tensors().items():
            self.register_buffer(f"null_{name}", tensor, persistent=False)
        self._names = tuple(null.tensors())

    @property
    def null(self) -> Condition:
        return Condition(**{name: self.get_buffer(f"null_{name}") for name in self._names})

    def both(self, condition: Condition) -> Condition:
        """The condition of both rows of guidance, the null condition first, on the device of the one that is given."""
        device = next(iter(condition.tensors().values())).device
        return concatenated(self.null.to(device).expanded(len(condition)), condition)

    def rows_per_image(self, step: Timestep) -> int:
        low, high = self.interval
        time = step.t / self.scheduler_config.get("num_train_timesteps", 1000)
        return 2 if self.scale != 1 and low <= time <= high else 1

    def combined(self, rows: Tensor, step: Timestep) -> Tensor:
        if self.rows_per_image(step) == 1:
            return rows
        null, conditional = rows.chunk(2)
        return null + self.scale * (conditional - null)

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        if self.rows_per_image(step) == 1:
            return self._denoiser.predict(x_t, step, condition)
        if condition is None:
            raise ValueError("expected a condition to guide towards, got none; set condition=labels or prompts")
        m, features, variance = self._denoiser.predict(torch.cat([x_t, x_t]), step, self.both(condition))
        features = None if features is None else self.combined(features, step)
        # As in DiTPipeline and its original, guidance acts on the output alone.
        return Output(self.combined(m, step), features, None if variance is None else variance.chunk(2)[1])

    def fingerprint(self) -> str:
        text = json.dumps(
            [self._denoiser.fingerprint(), tensors_digest(self.null.tensors()), self.scale, self.interval]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_network(self, network: nn.Module) -> "Guided":
        return Guided(self._denoiser.with_network(network), self.null, self.scale, self.interval)


class PairedRows(WrappedDenoiser):
    """The two rows of guidance for each image, not combined, for a pipeline that guides by itself.

    A batch is (2 B, C, H, W), the rows of the null condition first. To the network they are pairs, as `Guided` asks.
    """

    def rows_per_image(self, step: Timestep) -> int:  # noqa: ARG002
        return 2

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        return self._denoiser.predict(x_t, step, condition)

    def fingerprint(self) -> str:
        return self._denoiser.fingerprint()

    def with_network(self, network: nn.Module) -> "PairedRows":
        return PairedRows(self._denoiser.with_network(network))


def require_interval(low: float, high: float) -> None:
    """Refuse what is no interval of t / T.

    Raises:
        ValueError: its ends are not in order within [0, 1].
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"expected an interval of guidance within [0, 1], t / T from low to high, got [{low}, {high}]; set "
            "condition.guidance.interval"
        )
