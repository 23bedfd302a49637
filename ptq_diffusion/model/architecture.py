"""A network as planning sees it: its sites and its work, without weights."""

from dataclasses import dataclass

from ptq_diffusion.model.site import Site


@dataclass(frozen=True)
class Architecture:
    """The facts of a network that a bitwidth policy and a cost need.

    Args:
        sites: every layer and product that can be quantized, in the network's order.
        attention_macs: multiply-accumulates of one forward of one sample in attention's products that are no sites.
        parameters: how many numbers the network has, the sites' weights among them.
        rows: forwards for one image at every step of a table, 2 where guidance asks twice; empty of one everywhere.
    """

    sites: tuple[Site, ...]
    attention_macs: int
    parameters: int
    rows: tuple[int, ...] = ()

    def rows_over(self, steps: int) -> tuple[int, ...]:
        """Forwards for one image at every step of a table of so many.

        Raises:
            ValueError: it is of a table of another number of steps.
        """
        if self.rows and len(self.rows) != steps:
            raise ValueError(f"expected the network over a table of {steps} steps, got it over one of {len(self.rows)}")
        return self.rows or (1,) * steps
