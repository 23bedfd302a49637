"""The contract of a bitwidth policy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.model.site import Site


class BitwidthPolicy(ABC):
    """From a network's sites to a plan."""

    @abstractmethod
    def plan(self, sites: Sequence[Site]) -> BitwidthPlan:
        """Bits of every site.

        Raises:
            ValueError: the policy names something that the network does not have.
        """
