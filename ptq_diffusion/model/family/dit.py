"""Diffusers `DiTTransformer2DModel` networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import plain_attentions, times
from ptq_diffusion.model.family.patched import PatchedFamily


class DiT(PatchedFamily):
    """`DiTTransformer2DModel`, Peebles & Xie, ICCV 2023, arXiv 2212.09748: labels, of which the last is "no class"."""

    network_class = DiTTransformer2DModel
    has_graphs, null_first = True, False
    block_classes = (BasicTransformerBlock,)
    first, last = "pos_embed.proj", "proj_out_2"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        return {"labels": ()}

    def classes(self, config: Mapping[str, Any]) -> int | None:
        return config["num_embeds_ada_norm"]

    def null(self, config: Mapping[str, Any]) -> Condition | None:
        return Condition(labels=torch.tensor([config["num_embeds_ada_norm"]]))

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        labels = self.required(network, condition)["labels"]
        return network(x_t, timestep=times(t, x_t), class_labels=labels).sample

    def attentions(self, network: nn.Module) -> Sequence[str]:
        return plain_attentions(network)
