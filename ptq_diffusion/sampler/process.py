"""The forward process at one time, and x_0 and epsilon from a network's output there."""

from dataclasses import dataclass

FLOW = "flow_prediction"


@dataclass(frozen=True)
class Process:
    """The process x_t = signal x_0 + noise epsilon at one time, with the prediction type of the network.

    Args:
        signal: coefficient of x_0, sqrt(abar_t) where the process preserves variance.
        noise: coefficient of epsilon, sqrt(1 - abar_t) there.
        prediction: what m is: `epsilon`, `v_prediction` (v = signal epsilon - noise x_0), `sample` (x_0) or, where
            signal + noise = 1, `flow_prediction` (epsilon - x_0).
    """

    signal: float
    noise: float
    prediction: str

    @classmethod
    def of_abar(cls, abar_t: float, prediction: str) -> "Process":
        """The process that preserves variance, at the time whose cumulative alpha is `abar_t`."""
        return cls(abar_t**0.5, (1 - abar_t) ** 0.5, prediction)

    @classmethod
    def of_ratio(cls, ratio: float, prediction: str) -> "Process":
        """The process that preserves variance, at the time whose noise is `ratio` times its signal."""
        return cls((1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5, prediction)

    @classmethod
    def of_flow(cls, noise: float) -> "Process":
        """The straight path of flow matching, x_t = (1 - noise) x_0 + noise epsilon, whose network says the flow.

        Liu et al., ICLR 2023, arXiv 2209.03003; Lipman et al., ICLR 2023, arXiv 2210.02747.
        """
        return cls(1 - noise, noise, FLOW)

    def coefficients(self) -> tuple[float, float, float, float]:
        """(p_x, p_m, e_x, e_m) with x_0 = p_x x_t + p_m m and epsilon = e_x x_t + e_m m.

        Salimans & Ho, ICLR 2022, arXiv 2202.00512, for v.

        Raises:
            ValueError: an unknown prediction, that of a flow off its straight path, or epsilon where x_t holds no
                signal.
        """
        if self.prediction == "epsilon":
            if self.signal == 0:
                raise ValueError(
                    "expected abar_t > 0 of a model that predicts epsilon, which says nothing of x_0 where it is 0; "
                    "set +sampler.scheduler.rescale_betas_zero_snr=false"
                )
            return 1 / self.signal, -self.noise / self.signal, 0.0, 1.0
        if self.prediction == "v_prediction":
            return self.signal, -self.noise, self.noise, self.signal
        if self.prediction == "sample":
            return 0.0, 1.0, 1 / self.noise, -self.signal / self.noise
        if self.prediction == FLOW and abs(self.signal + self.noise - 1) < 1e-6:
            return 1.0, -self.noise, 1.0, self.signal
        if self.prediction == FLOW:
            raise ValueError(
                "expected signal + noise = 1 of a model of flow matching, whose path is straight, got "
                f"{self.signal} and {self.noise}; set the scheduler that it was trained with"
            )
        raise ValueError(f"expected prediction_type epsilon, v_prediction, sample or {FLOW}, got {self.prediction!r}")
