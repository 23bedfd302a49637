"""Equalisation of layers: ranges of their inputs' channels, and numbers of them as they stand against weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ptq_diffusion.model.site import Kind, Site
from ptq_diffusion.network.observing import showing_inputs
from ptq_diffusion.quantizer import Equalisation


class InputMaxima:
    """The largest magnitude in every channel of every layer's input, over all forwards that are observed.

    Args:
        sites: of a float network, of which those with a weight are observed.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites if site.weighted}
        self._maxima: dict[str, Tensor] = {}

    @contextmanager
    def observing(self, network: nn.Module, i: int = 0) -> Iterator[None]:  # noqa: ARG002
        """Within this context a forward of the float network is observed, at any step."""

        def see(name: str, x: Tensor) -> None:
            channels = 1 if self._sites[name].kind is Kind.CONV2D else -1
            maxima = x.detach().float().abs().movedim(channels, 0).flatten(1).amax(1)
            self._maxima[name] = maxima.maximum(self._maxima.get(name, maxima))

        with showing_inputs(network, self._sites, see):
            yield

    def tensors(self) -> dict[str, Tensor]:
        """The maxima so far by layer, (I,) float32 of I channels."""
        return dict(self._maxima)

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in what others have observed, each the `tensors` of one."""
        for part in parts:
            for name, maxima in part.items():
                self._maxima[name] = maxima.maximum(self._maxima.get(name, maxima))

    def factors(self, network: nn.Module, rule: Equalisation) -> dict[str, Tensor]:
        """The factors of every layer that was called, float32 on the CPU, which broadcast against its input, by name.

        They are (I, 1, 1) of images with I channels and (I,) of tokens.

        Args:
            network: the float one.
            rule: for the factors.

        Raises:
            ValueError: a rule gives a layer something else than a positive number for each channel.
        """
        factors = {}
        for name, maxima in self._maxima.items():
            weight = network.get_parameter(f"{name}.weight").detach()
            numbers = rule.factors(maxima.cpu(), weight_maxima(weight, len(maxima)).cpu())
            _require_factors(name, numbers, len(maxima))
            factors[name] = numbers.view(-1, *[1] * (weight.dim() - 2))
        return factors


def _require_factors(name: str, factors: Tensor, channels: int) -> None:
    """Refuse factors of a layer that cannot be multiplied and divided by.

    Raises:
        ValueError: the message names the layer.
    """
    fits = factors.shape == (channels,) and factors.dtype == torch.float32
    if not fits or not bool(((factors > 0) & factors.isfinite() & (1 / factors).isfinite()).all()):
        low, high = map(float, factors.aminmax()) if factors.numel() else (torch.nan, torch.nan)
        raise ValueError(
            f"expected {channels} positive float32 numbers with finite reciprocals as factors of the channels that "
            f"{name} reads, got {tuple(factors.shape)} of {factors.dtype} from {low:.3g} to {high:.3g}; choose another "
            "quantizer.equalisation"
        )


def weight_maxima(weight: Tensor, inputs: int) -> Tensor:
    """The largest magnitude of the weights that read each of I input channels, (I,).

    Args:
        weight: (O, I / G, ...) of a layer with G groups of channels.
        inputs: I.
    """
    groups = inputs // weight.shape[1]
    return weight.float().abs().reshape(groups, len(weight) // groups, weight.shape[1], -1).amax((1, 3)).flatten()


def summed_by_output(weight: Tensor, numbers: Tensor) -> Tensor:
    """The output of a layer without bias and border whose I input channels are these numbers everywhere, (O,) float64.

    Args:
        weight: (O, I / G, ...) of a layer with G groups of channels.
        numbers: (I,) or (I, 1, 1).
    """
    return (weight.double() * against_weight(numbers, weight.shape).double()).flatten(1).sum(1)


def against_weight(factors: Tensor, shape: Sequence[int]) -> Tensor:
    """Factors of I input channels as a tensor that broadcasts against a layer's weight.

    Args:
        factors: (I,) or (I, 1, 1).
        shape: (O, I / G, ...) of a weight of G groups of channels.
    """
    groups = factors.numel() // shape[1]
    rows = factors.reshape(groups, shape[1]).repeat_interleave(shape[0] // groups if groups > 1 else 1, dim=0)
    return rows.view(*rows.shape, *[1] * (len(shape) - 2))
