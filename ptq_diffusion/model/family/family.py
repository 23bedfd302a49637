"""The contract of a family: what is particular to one diffusers class of networks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition

ADVICE = {"labels": "condition=labels", "embeddings": "condition=prompts"}
"""The options that give a condition its labels, or its embeddings and what comes with them."""


class Family(ABC):
    """The call and the layout of networks of one diffusers class. It has no state: one instance serves all networks.

    Class attributes:
        network_class: the diffusers class.
        block_classes: of the residual and attention blocks.
        first: the name of the layer that states enter by.
        last: the name of the output layer.
        options_beside: options of a config.json that the class does not have and `build` heeds, with their types.
        has_graphs: whether ONNX graphs of such networks give their outputs in ONNX Runtime.
        null_first: whether stock pipelines that guide lay the rows of the null condition first.
    """

    network_class: ClassVar[type[ModelMixin]]
    options_beside: ClassVar[Mapping[str, type]] = {}
    has_graphs: ClassVar[bool] = False
    null_first: ClassVar[bool] = True
    block_classes: ClassVar[tuple[type[nn.Module], ...]]
    first: ClassVar[str]
    last: ClassVar[str]

    @abstractmethod
    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """The shape (C, H, W) of one latent, from the network's configuration.

        Raises:
            ValueError: a network that this family cannot ask; the message says why.
        """

    def build(self, config: Mapping[str, Any]) -> ModelMixin:
        """A network of a configuration, on the current device; its weights are arbitrary.

        What diffusers raises at options that do not fit each other passes through.
        """
        return self.network_class.from_config(config)

    def accepts_time_zero(self, config: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether a network of this configuration can be told t = 0."""
        return True

    def predicts_variance(self, config: Mapping[str, Any]) -> bool:
        """Whether a network of this configuration says a variance in a second half of its output's channels."""
        return config["out_channels"] == 2 * config["in_channels"]

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """The tensors of a condition that the network reads, by name, and the shape of a usual row of each."""
        return {}

    def classes(self, config: Mapping[str, Any]) -> int | None:  # noqa: ARG002
        """How many classes the network knows, the labels from 0 up; None where it reads no labels."""
        return None

    def null(self, config: Mapping[str, Any]) -> Condition | None:  # noqa: ARG002
        """The condition of one row that stands for "no class"; None where the network has none."""
        return None

    def pipeline_facts(self, config: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Facts that the stock pipeline tells its scheduler beside the scheduler's own configuration, by name.

        `image_seq_len` is the number of tokens of a state, by which noise levels may be shifted; `linear_sigmas` says
        that the pipeline asks for levels from 1 to 1/n.
        """
        return {}

    def patch_size(self, config: Mapping[str, Any]) -> int:  # noqa: ARG002
        """The side of the patch of the state that one position of the output layer computes, in latent pixels."""
        return 1

    def features(self, inputs: Tensor, size: tuple[int, int], config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        """The inputs of the output layer as a map, (B, F, H/p, W/p), p being the patch size.

        Args:
            inputs: as the output layer is given them: a map already, or tokens (B, H/p x W/p, F).
            size: of the states, (H, W).
            config: the network's.
        """
        return inputs

    def unpatched(self, patches: Tensor, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        """The network's output, (B, C', H, W), from the output layer's as a map, (B, p p C', H/p, W/p).

        C' is C or more. Each position computes a patch of p x p latent pixels, in the family's own order.
        """
        return patches

    @abstractmethod
    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        """The network's native output, (B, C or more, H, W): a predicted variance comes after the first C channels.

        Args:
            network: of the class, or a quantized copy of one.
            x_t: states, (B, C, H, W).
            t: the time of all of them.
            condition: of the B samples.

        Raises:
            ValueError: the condition lacks a tensor that the network reads, or has one that it does not read, or a
                label is of no class.
        """

    def blocks(self, network: nn.Module) -> Sequence[str]:
        """The names of the residual and attention blocks, in the order of the network's modules."""
        return [name for name, module in network.named_modules() if isinstance(module, self.block_classes)]

    def attentions(self, network: nn.Module) -> Sequence[str]:  # noqa: ARG002
        """The names of the attention layers whose products are sites; those of all others are always float.

        Each is an `Attention` of diffusers that computes as `AttnProcessor` does: with `to_q`, `to_k` and `to_v`, and
        without norms of q and k.
        """
        return ()

    def skips(self, network: nn.Module) -> Mapping[str, int]:  # noqa: ARG002
        """The layers whose input is a state and a skip connection, concatenated, and the state's channels."""
        return {}

    def required(self, network: nn.Module, condition: Condition | None) -> Mapping[str, Tensor]:
        """The tensors of a condition by name, which are those that a network reads.

        Args:
            network: of the class.
            condition: of its samples.

        Raises:
            ValueError: see `call`.
        """
        config: Any = network.config
        needs, tensors = self.needs(config), {} if condition is None else condition.tensors()
        kind = self.network_class.__name__
        if surplus := sorted(tensors.keys() - needs.keys()):
            reads = f"a condition of {', '.join(needs)}" if needs else "no condition"
            raise ValueError(f"expected {reads} for this {kind}, got {', '.join(surplus)}; leave it out")
        if missing := [name for name in needs if name not in tensors]:
            advice = ADVICE["labels"] if "labels" in missing else ADVICE["embeddings"]
            raise ValueError(
                f"expected a condition of {', '.join(needs)} for this {kind}, got one without {', '.join(missing)}; "
                f"set {advice}"
            )
        if "labels" in tensors:
            self._require_labels(tensors["labels"], config)
        return tensors

    def _require_labels(self, labels: Tensor, config: Mapping[str, Any]) -> None:
        classes = self.classes(config)
        # Labels have no numbers yet while a graph is traced.
        if classes is None or labels.is_meta or torch.compiler.is_exporting():
            return
        last = classes if self.null(config) is not None else classes - 1
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
            raise ValueError(
                f"expected labels from 0 to {last}, got labels from {int(labels.min())} to {int(labels.max())}; choose "
                "labels of classes that the network knows"
            )


def times(t: float | Tensor, x_t: Tensor) -> Tensor:
    """The time of every sample, (B,), of a time that all of them are at."""
    return torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0])


def plain_attentions(network: nn.Module) -> list[str]:
    """The names of attention layers that compute as `AttnProcessor` does, in the network's order."""
    return [name for name, module in network.named_modules() if isinstance(module, Attention) and _is_plain(module)]


def _is_plain(attention: Attention) -> bool:
    plain = type(attention.processor) in (AttnProcessor, AttnProcessor2_0)
    return plain and attention.norm_q is None and attention.norm_k is None
