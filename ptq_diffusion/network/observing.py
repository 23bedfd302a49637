"""Observation of a network: distributions of layers' inputs and of attention's operands, and outputs one by one."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptq_diffusion.model.site import Site, products_by_attention
from ptq_diffusion.network.attention import watching_operands
from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.rescaling import InputGrid
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import Quantizer, RangeSearch

MOST_BITS = 8
"""Bits of the quantizers that observe; their observations serve all bitwidths."""


class InputObservations:
    """The distribution of every operand that is no weight, observed once for all bitwidths.

    Args:
        sites: of a float network.
        activation: from a bitwidth to a fresh quantizer of an input.

    Raises:
        ValueError: the quantizer has a granularity that only that of a weight can have.
    """

    def __init__(self, sites: Sequence[Site], activation: Callable[[int], Quantizer]) -> None:
        self._make = activation
        self._observers = {name: activation(MOST_BITS) for site in sites for name in site.operands}
        self._layers = [site.name for site in sites if site.weighted]
        self._attentions = list(products_by_attention(sites))
        for granularity in {observer.granularity for observer in self._observers.values()}:
            if not granularity.of_inputs:
                raise ValueError(
                    f"expected a quantizer of activations, got one with {granularity}, which only weights can have; "
                    "choose quantizer@quantizer.activation=affine_per_tensor or symmetric_per_tensor"
                )

    @contextmanager
    def observing(self, network: nn.Module) -> Iterator[None]:
        """Within this context a forward of the float network is observed."""
        with ExitStack() as hooks:
            for name in self._layers:
                hook = network.get_submodule(name).register_forward_pre_hook(
                    lambda _, inputs, name=name: self._observers[name].observe(inputs[0])
                )
                hooks.enter_context(hook)
            hooks.enter_context(watching_operands(network, self._attentions, self._observe))
            yield

    def _observe(self, operand: str, x: Tensor) -> None:
        self._observers[operand].observe(x)

    def quantizer(self, operand: str, bits: int) -> Quantizer:
        """The frozen quantizer of an operand at so many bits; the input of a layer has the layer's name.

        Raises:
            RuntimeError: nothing was observed; the message names the operand.
        """
        quantizer = self._make(bits)
        try:
            quantizer.observed(self._observers[operand].observation())
        except RuntimeError as error:
            raise RuntimeError(f"{operand}: {error}") from error
        quantizer.freeze()
        return quantizer

    def save(self, path: Path) -> None:
        """Write all observations as safetensors, by operand/name."""
        parts = ((operand, observer.observation()) for operand, observer in self._observers.items())
        save_file({f"{operand}/{name}": tensor for operand, part in parts for name, tensor in part.items()}, path)

    def restore(self, path: Path) -> None:
        """Take the observations that `save` wrote.

        Raises:
            ValueError: the file is broken, or holds observations of other operands or another kind of quantizer.
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"expected observations of layers' inputs in {path}, got a broken file ({error}); calibrate again"
            ) from error
        parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            operand, _, part = name.rpartition("/")
            parts[operand][part] = tensor
        if odd := sorted(parts.keys() ^ self._observers.keys()):
            raise ValueError(
                f"{path} holds observations of another network: only one of both has {odd[0]} ({len(odd)} differ); "
                "calibrate again"
            )
        for operand, observer in self._observers.items():
            observer.observed(parts[operand])


@contextmanager
def watching(network: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Within this context the outputs of some layers are shown; what `see` returns takes their place, if any."""
    with ExitStack() as hooks:
        for name in names:
            layer = network.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output, name=name: see(name, output)))
        yield


@contextmanager
def regridding(
    layers: Mapping[str, QuantizedLayer], range_search: RangeSearch, i: int, grids: dict[str, InputGrid]
) -> Iterator[None]:
    """Within this context every quantized input is put on a grid chosen from its own values and kept in `grids`.

    Args:
        layers: by name; those with a float input at the step are left out.
        range_search: chooses the interval that a grid covers.
        i: the step.
        grids: receives the grids by name.
    """

    def regrid(name: str, grid: Grid, x: Tensor) -> Tensor:
        grids[name] = InputGrid.of(x, grid, range_search)
        return grids[name].numbers(grid).fake_quantized(x)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            if (grid := layer.settings.grid(i)) is not None:
                hook = layer.settings.register_forward_hook(
                    lambda _, inputs, __, name=name, grid=grid: regrid(name, grid, inputs[0])
                )
                hooks.enter_context(hook)
        yield
