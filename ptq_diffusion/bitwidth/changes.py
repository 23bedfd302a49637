"""Second moments of small changes of x_0, one for each layer and step, and how they add up over steps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Changes:
    """Second moments of changes a of <v, x_0>, each by one layer at one step, streamed over samples.

    Errors of one layer at neighbouring steps are alike, as its inputs are, so that they add up rather than cancel;
    those of different layers are taken as uncorrelated.

    Args:
        squares: (L, S, N) float64, the sum over samples of a^2 for L layers, S steps and N bitwidths.
        products: (N, S, S) float64, the sum over samples and layers of a_i a_j of the steps i and j.
    """

    squares: Tensor
    products: Tensor

    @classmethod
    def of(cls, changes: Tensor) -> "Changes":
        """The moments of a batch of B samples, (L, S, N, B)."""
        return cls(changes.square().sum(-1), torch.einsum("linb,ljnb->nij", changes, changes))

    def merge(self, other: "Changes") -> "Changes":
        """The moments of both batches."""
        return Changes(self.squares + other.squares, self.products + other.products)

    @property
    def coherence(self) -> Tensor:
        """c, (S, N): how much larger a step's share of E (sum_j a_j)^2 is than E a_i^2, sum_j E a_i a_j / E a_i^2.

        1 where steps are uncorrelated, S where all make the same change; of equal bits at all steps, over all layers
        together. At least 1: a step whose error others undo would be a gain, which another plan need not have. It is 1
        at a step that changes nothing.
        """
        squares = self.products.diagonal(dim1=1, dim2=2)
        share = self.products.sum(-1) / squares
        return torch.where(squares > 0, share.clamp(min=1), 1.0).T

    def together(self) -> Tensor:
        """Damage of every layer, step and bitwidth as a share of what all steps do together, (L, S, N): c_i a_i^2."""
        return self.squares * self.coherence


def rising_weights(steps: int, first: float) -> Tensor:
    """Weights of steps that rise by equal factors from that of the first to 1 of the last, (S,) float64.

    Args:
        steps: S; a single step has the weight 1.
        first: the weight of the first step, above 0.
    """
    places = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    return torch.tensor(first, dtype=torch.float64) ** (places / max(steps - 1, 1))
