"""Class labels that samples are drawn with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptq_diffusion.numeric.seed import generator


class Labels:
    """A label for every sample, drawn like its noise: a function of (seed, purpose, index), whatever its batch.

    Args:
        only: the labels that are drawn, each as often as it is named; None for all classes of the network alike.
        no_class: the label that means no class, which guidance leads away from and which is not drawn with the others;
            None where the network says so itself, as a DiT does, or has none.

    Raises:
        ValueError: no label, or a negative one.
    """

    def __init__(self, only: Sequence[int] | None, no_class: int | None) -> None:
        if only is not None and (not only or min(only) < 0):
            raise ValueError(
                f"expected class labels of 0 and more, at least one, got {list(only)}; set condition.source.only=null "
                "for all"
            )
        self.only, self.no_class = None if only is None else tuple(only), no_class

    def require(self, classes: int) -> None:
        """Refuse labels that a network of so many classes does not know.

        Raises:
            ValueError: a label is out of range.
        """
        named = {"only": self.only or (), "no_class": () if self.no_class is None else (self.no_class,)}
        for option, labels in named.items():
            if odd := [label for label in labels if not 0 <= label < classes]:
                raise ValueError(
                    f"expected class labels of 0 to {classes - 1}, which the network knows, got {odd[0]}; set "
                    f"condition.source.{option}"
                )

    def draw(self, classes: int, seed: int, indices: Sequence[int], purpose: str) -> Tensor:
        """The labels of some samples, (B,) int64.

        Args:
            classes: of the network.
            seed: the run's seed.
            indices: which samples.
            purpose: what the samples are for.
        """
        labels = torch.tensor(self.only or [label for label in range(classes) if label != self.no_class])
        streams = (generator("label", purpose, seed, index) for index in indices)
        places = [int(torch.randint(len(labels), (), generator=stream)) for stream in streams]
        return labels[places]
