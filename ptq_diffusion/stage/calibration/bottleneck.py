"""Features of the float network at its narrowest block, step by step."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network.observing import watching
from ptq_diffusion.rounding.calls import call_of, tensors_of
from ptq_diffusion.sampler import Table

States = Iterable[tuple[int, Tensor, Condition | None]]
"""Triples of a step's index, states x_t at it, (B, C, H, W), and their condition."""


@torch.no_grad()
def step_features(model: Denoiser, table: Table, states: States, images: int) -> Tensor:
    """The features of the first images at every step, (S, P, C): C channels at P places of all of them.

    They are outputs of the narrowest block; of a guided network those that the condition leads to.

    Args:
        model: the float network.
        table: of S steps.
        states: of float sampling, of all steps for one batch of images after the other.
        images: how many, the same at all steps; all where there are fewer.
    """
    rows, missing = defaultdict[int, list[Tensor]](list), dict.fromkeys(range(len(table)), images)
    block = ""
    for i, x_t, condition in states:
        x_t, some = x_t[: missing[i]], rows_of(condition, slice(missing[i]))
        if not len(x_t):
            break
        missing[i] -= len(x_t)
        on_device = None if some is None else some.to(_device(model))
        state = x_t.to(_device(model))
        block = block or narrowest_block(model, table, state, on_device)
        _, _, outputs = call_of(
            model.network.get_submodule(block),
            partial(model.predict, state, table[i], on_device),
        )
        # A block with several outputs returns the image's last; under guidance the conditional rows are the last half.
        rows[i].append(_by_place(outputs[-1][-len(state) :]).float().cpu())
    return torch.stack([torch.cat(rows[i]) for i in range(len(table))])


def narrowest_block(model: Denoiser, table: Table, x_t: Tensor, condition: Condition | None) -> str:
    """The name of the block with the fewest numbers in its output, the middle one where several have as few.

    Args:
        model: the network.
        table: of which the first step is asked about.
        x_t: states at the first step.
        condition: of them.
    """
    sizes: dict[str, int] = {}

    def see(name: str, output: object) -> None:
        sizes.setdefault(name, tensors_of(output)[-1].numel())

    with watching(model.network, model.blocks(), see):
        model.predict(x_t, table[0], condition)
    assert sizes, "a network without blocks is refused before"
    narrow = [name for name, size in sizes.items() if size == min(sizes.values())]
    return narrow[len(narrow) // 2]


def _by_place(output: Tensor) -> Tensor:
    """A block's output, (B, C, H, W) or (B, tokens, C), as (P, C)."""
    channels_last = output.movedim(1, -1) if output.dim() == 4 else output
    return channels_last.reshape(-1, channels_last.shape[-1])


def _device(model: Denoiser) -> torch.device:
    return next(model.parameters()).device
