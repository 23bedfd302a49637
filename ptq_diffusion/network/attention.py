"""Attention whose products QK^T and PV have quantized operands."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.model.site import Site, products_by_attention
from ptq_diffusion.network.layer import CurrentStep
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.numeric.grid import FLOAT_BITS

OPERANDS = ("q", "k", "p", "v")
"""The operands of both products, p being softmax(q k^T / sqrt(d))."""
PROJECTIONS = ("q", "k", "v")
"""The operands that are outputs of a projection."""
AT_ONCE = 2**24
"""Numbers of p that are computed together where parts of it serve, 64 MiB; an image has L^2 a head, of L tokens."""
PROCESSOR = "processor"
"""The attribute of an `Attention` that holds the processor, which computes."""


class QuantizedAttention(nn.Module):
    """An attention processor of diffusers that quantizes q, k, p and v by the settings of the current step.

    `AttnProcessor` computes both products one after the other, with the softmax between them in float. At a step where
    all operands are float the original processor computes, whose fused kernel rounds otherwise in the last bits.

    Args:
        original: the processor of the float attention.
        operands: settings of `q`, `k`, `p` and `v`.
        current: shared by all layers of a network.
    """

    operands: nn.ModuleDict

    def __init__(
        self, original: Callable[..., Tensor], operands: Mapping[str, LayerSettings], current: CurrentStep
    ) -> None:
        super().__init__()
        self.original, self.current = original, current
        self.operands = nn.ModuleDict(operands)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The module's call, whose arguments `Attention` looks up by name to know what to pass."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def forward(self, attn: Attention, *inputs: Tensor | None) -> Tensor:
        i = self.current.i
        if all(settings.grid(i) is None for settings in self.settings().values()):
            return self.original(attn, *inputs)
        view: Any = _QuantizedView(attn, self.settings(), i)
        return AttnProcessor()(view, *inputs)

    def settings(self) -> dict[str, LayerSettings]:
        """The settings of `q`, `k`, `p` and `v`."""
        return {letter: settings for letter, settings in self.operands.items() if isinstance(settings, LayerSettings)}


class _QuantizedView:
    """An attention layer as `AttnProcessor` sees it: all its own, but for the operands of its products.

    Args:
        attention: the layer.
        operands: settings of `q`, `k`, `p` and `v`.
        i: the step.
    """

    def __init__(self, attention: Attention, operands: Mapping[str, LayerSettings], i: int) -> None:
        self._attention, self._operands, self._i = attention, operands, i

    def __getattr__(self, name: str) -> object:
        return getattr(self._attention, name)

    def to_q(self, x: Tensor) -> Tensor:
        return self._quantized("q", self._attention.to_q(x))

    def to_k(self, x: Tensor) -> Tensor:
        return self._quantized("k", self._attention.to_k(x))

    def to_v(self, x: Tensor) -> Tensor:
        return self._quantized("v", self._attention.to_v(x))

    def get_attention_scores(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        return self._quantized("p", self._attention.get_attention_scores(q, k, mask))

    def _quantized(self, letter: str, x: Tensor) -> Tensor:
        return self._operands[letter](x, self._i)


def quantized_attentions(sites: Iterable[Site], plan: BitwidthPlan) -> dict[str, list[Site]]:
    """The products of every attention layer of which an operand has fewer than float bits at any step, by its name."""
    return {
        name: products
        for name, products in products_by_attention(sites).items()
        if any({*plan.weight[site.name], *plan.activation[site.name]} != {FLOAT_BITS} for site in products)
    }


def install(network: nn.Module, name: str, settings: Mapping[str, LayerSettings], current: CurrentStep) -> None:
    """Make one attention layer of a network compute with quantized operands.

    Args:
        network: it is changed.
        name: of the attention layer.
        settings: of its operands among others, by their full names.
        current: shared by all layers of the network.

    Raises:
        TypeError: the layer is no `Attention` of diffusers.
    """
    attention = network.get_submodule(name)
    if not isinstance(attention, Attention):
        raise TypeError(f"expected an Attention layer of diffusers at {name}, got {type(attention).__name__}")
    operands = {letter: settings[f"{name}.{letter}"] for letter in OPERANDS}
    attention.set_processor(QuantizedAttention(attention.processor, operands, current))


@contextmanager
def watching_operands(
    network: nn.Module, attentions: Sequence[str], see: Callable[[str, Tensor], None], at_once: int | None = None
) -> Iterator[None]:
    """Within this context the operands of attention's products are shown by their full names.

    Nothing that the network computes changes: p is computed once more, beside the layer's own kernel.

    Args:
        network: float or quantized.
        attentions: the names of its attention layers.
        see: is called with the full name of an operand and the operand.
        at_once: numbers of p that it is shown at most at a time, some rows of images and heads, so that memory does not
            grow with the square of the tokens of a whole batch; None shows it all of p.
    """
    with ExitStack() as hooks:
        for name in attentions:
            attention, watch = network.get_submodule(name), _Watch(name, see, at_once)
            for letter in PROJECTIONS:
                projection = attention.get_submodule(f"to_{letter}")
                hooks.enter_context(projection.register_forward_hook(watch.projection_hook(letter)))
            hooks.enter_context(attention.register_forward_hook(watch.layer_hook, with_kwargs=True))
        yield


class _Watch:
    """Hooks of one attention layer that show its operands.

    Args:
        name: the layer's name.
        see: is called with the full name of an operand and the operand.
        at_once: numbers of p that are computed and shown together at most, but for a row; None is all.
    """

    def __init__(self, name: str, see: Callable[[str, Tensor], None], at_once: int | None) -> None:
        self._name, self._see, self._at_once = name, see, at_once
        self._projections: dict[str, Tensor] = {}

    def projection_hook(self, letter: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        """The hook of a projection, which keeps the output."""

        def keep(_: nn.Module, __: tuple, output: Tensor) -> None:
            self._projections[letter] = output

        return keep

    def layer_hook(self, attention: Attention, _: tuple, options: Mapping[str, Any], __: Tensor) -> None:
        """The hook of the layer, which shows all operands once the layer is done."""
        q, k = (attention.head_to_batch_dim(self._projections[letter]) for letter in ("q", "k"))
        batch, length = self._projections["k"].shape[:2]
        mask = attention.prepare_attention_mask(options.get("attention_mask"), length, batch)
        for letter, operand in self._projections.items():
            self._see(f"{self._name}.{letter}", operand)
        self._projections.clear()
        count = len(q) if self._at_once is None else max(1, self._at_once // (q.shape[1] * k.shape[1]))
        for first in range(0, len(q), count):
            rows = slice(first, first + count)
            p = attention.get_attention_scores(q[rows], k[rows], None if mask is None else mask[rows])
            self._see(f"{self._name}.p", p)
