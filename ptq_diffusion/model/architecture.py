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
    """

    sites: tuple[Site, ...]
    attention_macs: int
    parameters: int
