"""The shift of noise levels by the size of an image, as pipelines of flow matching tell it their schedulers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

CLOSE = 1e-6
"""The relative difference of two mu that rounding may leave."""


@dataclass(frozen=True)
class DynamicShift:
    """mu, linear in the tokens of a state: sigma' = e^mu / (e^mu + 1 / sigma - 1), or linear (Esser et al., ICML 2024).

    Pipelines compute mu from the line that their scheduler's configuration says, and pass it to `set_timesteps`.

    Args:
        mu: of the states that a table is of.
        base_image_seq_len: tokens at which mu is `base_shift`.
        max_image_seq_len: tokens at which mu is `max_shift`.
        base_shift: see above.
        max_shift: see above.

    Raises:
        ValueError: the line is not given by two different points.
    """

    mu: float
    base_image_seq_len: float
    max_image_seq_len: float
    base_shift: float
    max_shift: float

    def __post_init__(self) -> None:
        if not self.base_image_seq_len < self.max_image_seq_len:
            raise ValueError(
                f"expected a shift with a max_image_seq_len above its base_image_seq_len, {self.base_image_seq_len}, "
                f"got {self.max_image_seq_len}; make the table again, or set both with +sampler.scheduler.NAME=VALUE"
            )

    @classmethod
    def of(cls, tokens: int, options: Mapping[str, Any]) -> Self:
        """The shift of states of so many tokens, in the arithmetic of diffusers' pipelines.

        Args:
            tokens: of a state.
            options: of the model's scheduler.
        """
        low, high = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (high - low)
        mu = tokens * slope + (options["base_shift"] - slope * low)
        return cls(float(mu), low, high, options["base_shift"], options["max_shift"])

    @property
    def options(self) -> dict[str, Any]:
        """The options of a scheduler by which a pipeline computes mu."""
        line = {name: value for name, value in asdict(self).items() if name != "mu"}
        return {"use_dynamic_shifting": True} | line

    def require(self, mu: float) -> None:
        """Refuse the mu of another size, whose noise levels are not those of the table.

        Raises:
            ValueError: it is another.
        """
        if not math.isclose(mu, self.mu, rel_tol=CLOSE, abs_tol=CLOSE):
            slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
            tokens = (self.mu - self.base_shift) / slope + self.base_image_seq_len if slope else math.nan
            raise ValueError(
                f"expected mu={self.mu:.6g}, the shift of states of {tokens:.0f} tokens, whose noise levels the "
                f"correction was fitted at, got mu={mu:.6g}, which a stock scheduler would follow to other levels; "
                "call the pipeline with the height and width that the model was fitted for and without mu"
            )
