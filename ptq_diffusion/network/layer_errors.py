"""Errors of quantized sites at one step, each by itself and where it stands in a quantized network.

Legend: x and y = f(x), the input and the output of a site in the float network; f_q, the quantized site; y_q, its
output in a quantized network on what reaches it there. f_q(x) - y is the site's own error, y_q - y the accumulated one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ptq_diffusion.model import Timestep
from ptq_diffusion.model.site import Site, products_by_attention
from ptq_diffusion.network.attention import QuantizedAttention, watching_operands
from ptq_diffusion.network.quantized import QuantizedDenoiser

POWER = "power"
"""The name of the squares of y."""
Operands = Mapping[str, Tensor]
"""q, k and v, (B, L, C), and p, (B heads, L, L), of an attention layer."""
Output = Callable[[], Tensor]


class StepErrors:
    """Sums of squares over all numbers of each site's output, at one step.

    The float network is asked first, and then the quantized networks that are compared with it. Outputs of the float
    network are held until then; of QK^T, which is as large as all pairs of tokens, Q and K are. A site that is computed
    several times is compared call by call; calls that the float network does not make, of a correction that asks again,
    are left out.

    Attributes:
        sums: (sites,) float64 by name: `power`, and `own_` and `accumulated_` with the name of each network.
        order: the names of the sites in the order in which the float network computed them.

    Args:
        sites: of the networks.
        step: the row of the table.
        networks: quantized, by name.
    """

    def __init__(self, sites: Sequence[Site], step: Timestep, networks: Mapping[str, QuantizedDenoiser]) -> None:
        kinds = (POWER, *(f"{kind}_{name}" for name in networks for kind in ("own", "accumulated")))
        self.sums = {kind: torch.zeros(len(sites), dtype=torch.float64) for kind in kinds}
        self.order: list[str] = []
        self._step, self._networks = step, networks
        self._places = {site.name: place for place, site in enumerate(sites)}
        self._layers = [site.name for site in sites if site.weighted]
        self._attentions = list(products_by_attention(sites))
        self._outputs: defaultdict[str, list[Output]] = defaultdict(list)

    @contextmanager
    def of_float(self, network: nn.Module) -> Iterator[None]:
        """Within this context the float network is asked once, and every quantized site on the inputs there."""
        for quantized in self._networks.values():
            quantized.begin(self._step)
        with ExitStack() as stack:
            for name in self._layers:
                hook = network.get_submodule(name).register_forward_hook(partial(self._see_layer, name))
                stack.enter_context(hook)
            see = partial(self._see_products, network)
            stack.enter_context(watching_products(network, self._attentions, {}, see))
            yield

    @contextmanager
    def of_quantized(self, name: str) -> Iterator[None]:
        """Within this context one of the quantized networks is asked, and compared with the float one."""
        network = self._networks[name].network
        calls: defaultdict[str, int] = defaultdict(int)

        def compare(site: str, output: Output) -> None:
            if calls[site] < len(self._outputs[site]):
                self._add(f"accumulated_{name}", site, output() - self._outputs[site][calls[site]]())
            calls[site] += 1

        def see(attention: str, operands: Operands) -> None:
            for site, output in products(network.get_submodule(attention), attention, operands).items():
                compare(site, output)

        with ExitStack() as stack:
            for site in self._layers:
                hook = network.get_submodule(site).register_forward_hook(
                    lambda _, __, y_q, site=site: compare(site, lambda: y_q)
                )
                stack.enter_context(hook)
            quantized = self._networks[name].attentions()
            stack.enter_context(watching_products(network, self._attentions, quantized, see))
            yield

    def _see_layer(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        # What comes behind a layer may change its output in place.
        y = y.clone()
        self._keep(name, lambda: y)
        self._add(POWER, name, y)
        for label, quantized in self._networks.items():
            self._add(f"own_{label}", name, quantized.layer(name)(inputs[0]) - y)

    def _see_products(self, network: nn.Module, name: str, operands: Operands) -> None:
        attention = network.get_submodule(name)
        outputs = products(attention, name, operands)
        for site, output in outputs.items():
            self._add(POWER, site, output())
            self._keep(site, output)
        for label, quantized in self._networks.items():
            if name in (attentions := quantized.attentions()):
                settings = attentions[name].settings()
                on_grids = {letter: settings[letter](operand, self._step.i) for letter, operand in operands.items()}
                for site, output in products(attention, name, on_grids).items():
                    self._add(f"own_{label}", site, output() - outputs[site]())

    def _keep(self, site: str, output: Output) -> None:
        if site not in self._outputs:
            self.order.append(site)
        self._outputs[site].append(output)

    def _add(self, kind: str, site: str, error: Tensor) -> None:
        self.sums[kind][self._places[site]] += float(error.float().square().sum())


def products(attention: nn.Module, name: str, operands: Operands) -> dict[str, Output]:
    """Both products of an attention layer, in each head, without mask and scale, by their sites' names.

    Each is computed when it is called for; PV, which is small, is computed at once, so that P need not be held.
    """
    assert isinstance(attention, Attention)
    q, k, v = (attention.head_to_batch_dim(operands[letter]) for letter in ("q", "k", "v"))
    pv = operands["p"] @ v
    return {f"{name}.qk": lambda: q @ k.mT, f"{name}.pv": lambda: pv}


@contextmanager
def watching_products(
    network: nn.Module,
    attentions: Sequence[str],
    quantized: Mapping[str, QuantizedAttention],
    see: Callable[[str, Operands], None],
) -> Iterator[None]:
    """Within this context the operands of attention's products are shown as they are multiplied.

    Args:
        network: float or quantized.
        attentions: the names of its attention layers.
        quantized: the processors of those whose operands are put on grids.
        see: is called with the name of an attention layer and its operands, once the layer is done.
    """
    operands: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)

    def operand(full_name: str, x: Tensor) -> None:
        name, _, letter = full_name.rpartition(".")
        # Those on grids came before, from within the layer; p is the last of all.
        operands[name].setdefault(letter, x)
        if letter == "p":
            see(name, operands.pop(name))

    def on_grid(name: str, letter: str, _: nn.Module, __: object, x_hat: Tensor) -> None:
        operands[name][letter] = x_hat

    with ExitStack() as stack:
        for name, attention in quantized.items():
            for letter, settings in attention.settings().items():
                stack.enter_context(settings.register_forward_hook(partial(on_grid, name, letter)))
        stack.enter_context(watching_operands(network, attentions, operand))
        yield
