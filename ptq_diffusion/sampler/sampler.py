"""The contract of a sampler: it only computes a table."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ptq_diffusion.sampler.table import Table


class Sampler(ABC):
    """A table of step coefficients, taken from the scheduler that the model was saved with."""

    @abstractmethod
    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        """The steps in the order of sampling, from t = T down.

        Args:
            scheduler_config: the configuration of a diffusers scheduler, as its `config` or `scheduler_config.json`.

        Raises:
            ValueError: an option of the scheduler that is missing, of another type, or not reproduced by this sampler.
        """


def require_steps(steps: int) -> int:
    """The number of steps, which is 1 or more.

    Raises:
        ValueError: it is not.
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}; set sampler.steps to 1 or more")
    return steps
