"""Multiply-accumulates of a network, counted on the meta device: no memory, no arithmetic."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward of one sample.

    Args:
        layers: of every Conv2d and Linear, by name.
        input_size: how many numbers their inputs have, by name.
        products: of either product of an attention layer, L x L x C, by the layer's name.
        attention: of all other products QK^T and PV.
    """

    layers: dict[str, int]
    input_size: dict[str, int]
    products: dict[str, int]
    attention: int


def layers_of(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every Conv2d and Linear of a network by its dotted name, in the network's order."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def count_macs(network: nn.Module, forward: Callable[[nn.Module], object], attentions: Sequence[str]) -> Macs:
    """Count the multiply-accumulates of one forward.

    Args:
        network: on the meta device.
        forward: asks the network about one sample whose tensors are on the meta device.
        attentions: the names of attention layers whose products are told apart, with projections `to_q` and `to_k`.
    """
    macs, input_size = (dict.fromkeys(layers_of(network), 0) for _ in range(2))
    projected: defaultdict[str, list[torch.Size]] = defaultdict(list)

    def count(name: str, layer: nn.Conv2d | nn.Linear, x: Tensor, output: Tensor) -> None:
        # Each element of the output takes as many as one filter has weights.
        macs[name] += output.numel() * layer.weight[0].numel()
        input_size[name] += x.numel()
        projected[name].append(output.shape)

    hooks = [
        layer.register_forward_hook(lambda layer, x, output, name=name: count(name, layer, x[0], output))
        for name, layer in layers_of(network).items()
    ]
    # On the CPU the counter misses fused attention; on the meta device it counts it.
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        forward(network)
    for hook in hooks:
        hook.remove()
    pairs = {name: zip(projected[f"{name}.to_q"], projected[f"{name}.to_k"], strict=True) for name in attentions}
    # q is (1, L, C), k is (1, L', C): L x L' sums of C products, whatever the number of heads.
    products = {name: sum(q.numel() * k[1] for q, k in calls) for name, calls in pairs.items()}
    rest = counter.get_total_flops() // 2 - sum(macs.values()) - 2 * sum(products.values())
    return Macs(macs, input_size, products, rest)
