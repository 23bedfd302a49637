"""Second moments of the inputs of a layer over all steps, taken in a stream."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_diffusion.numeric.seed import generator

RIDGE = 1e-4
"""The share of the mean second moment that keeps the weight's target determined where inputs are few."""


@dataclass(frozen=True)
class Moments:
    """Second moments of the inputs that meet one weight; of a convolution these are its patches.

    Args:
        second: H = sum_t w_t n_t E_t[x_hat x_hat^T] / sum_t w_t n_t over the steps t, of n_t inputs each, (G, n, n) for
            G groups of channels; x_hat is the quantized input.
        difference: the same of (x - x_hat) x_hat^T, (G, n, n), x being the float input; None where the weight itself is
            to be met, in place of the float layer's output.
    """

    second: Tensor
    difference: Tensor | None = None

    def target(self, weight: Tensor, group: int) -> Tensor:
        """The values that a rounding is to meet, (R, n): the weight, or the one with which x_hat gives W x best.

        The latter is W + W D H^-1, the regression of the float output on the quantized input.
        """
        if self.difference is None:
            return weight
        second = self.second[group].double()
        ridge = RIDGE * second.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        second = second + ridge * torch.eye(len(second), dtype=second.dtype, device=second.device)
        change = torch.linalg.solve(second, (weight.double() @ self.difference[group].double()).T).T
        return (weight.double() + change).float()


@dataclass(frozen=True)
class _Centre:
    """The centre of the inputs of one step that were taken in.

    Args:
        count: of the inputs.
        mean: of the quantized ones, (G, n).
        change: the mean of what quantization takes from the float ones, (G, n); None without these.
    """

    count: int
    mean: Tensor
    change: Tensor | None


class MomentStream:
    """Second moments taken batch by batch, in memory that does not grow with the number of batches.

    Each batch adds its scatter around its own mean; that between it and the batches of its step before is added when it
    is merged with them (Chan's update). Every row of an input counts alike: a guided state has two rows, so that it
    counts twice beside those of steps outside of the interval of guidance.

    Args:
        weights: of every step, (S,), which sum to 1.
        without_means: whether the mean of each step is taken out, which an offset of the step's own gives back.
    """

    def __init__(self, weights: Tensor, without_means: bool) -> None:
        self._weights, self._without_means = weights.tolist(), without_means
        self._within: Tensor | None = None
        self._difference: Tensor | None = None
        self._centres: dict[int, _Centre] = {}

    def add(self, i: int, x_hat: Tensor, x: Tensor | None = None) -> None:
        """Take in inputs at step i.

        Args:
            i: the step.
            x_hat: quantized inputs, (G, N, n).
            x: the float inputs in their places; None where the weight itself is to be met.
        """
        mean, weight = x_hat.mean(1), self._weights[i]
        centred = x_hat - mean[:, None]
        self._within = _plus(self._within, weight * centred.mT @ centred)
        change = None
        if x is not None:
            change = (x - x_hat).mean(1)
            self._difference = _plus(self._difference, weight * (x - x_hat - change[:, None]).mT @ centred)
        self._centres[i] = self._merged(i, _Centre(x_hat.shape[1], mean, change))

    def _merged(self, i: int, batch: _Centre) -> _Centre:
        """The centre of step i with a batch; the scatter between the two is added."""
        before = self._centres.get(i)
        if before is None:
            return batch
        count = before.count + batch.count
        share = batch.count / count
        shift = batch.mean - before.mean
        factor = self._weights[i] * before.count * share
        self._within = _plus(self._within, factor * _outer(shift, shift))
        change = None
        if before.change is not None and batch.change is not None:
            moved = batch.change - before.change
            self._difference = _plus(self._difference, factor * _outer(moved, shift))
            change = before.change + share * moved
        return _Centre(count, before.mean + share * shift, change)

    def moments(self) -> Moments:
        """The moments of all that was taken in.

        Raises:
            ValueError: nothing was.
        """
        factors = {i: self._weights[i] * centre.count for i, centre in self._centres.items()}
        if self._within is None or not (total := sum(factors.values())):
            raise ValueError(
                "expected inputs of a layer at a step that has a weight, got none; raise calibration.images or choose "
                "other step weights or another calibration_set"
            )
        second, difference = self._within, self._difference
        if not self._without_means:
            for i, centre in self._centres.items():
                second = second + factors[i] * _outer(centre.mean, centre.mean)
                if difference is not None and centre.change is not None:
                    difference = difference + factors[i] * _outer(centre.change, centre.mean)
        return Moments(second / total, None if difference is None else difference / total)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of each group, (G, n, n) of (G, n)."""
    return a[:, :, None] * b[:, None]


def columns(layer: nn.Module, x: Tensor, positions: int, *seed: int | str) -> Tensor:
    """The inputs that each row of a layer's weight is multiplied with, (G, N, n) float32, at places of each sample.

    Args:
        layer: a float `nn.Linear`, or `nn.Conv2d` with G groups and zeros around its input.
        x: its input, (B, ..., n) or (B, C, H, W).
        positions: how many of the places of its output are taken, the same for all samples of the batch.
        seed: equal parts choose equal places.
    """
    x = x.float()
    if isinstance(layer, nn.Conv2d):
        return _patches(layer, x, positions, *seed)
    tokens = x.reshape(len(x), -1, x.shape[-1])
    return tokens[:, _chosen(tokens.shape[1], positions, *seed).to(x.device)].reshape(1, -1, x.shape[-1])


def _patches(layer: nn.Conv2d, x: Tensor, positions: int, *seed: int | str) -> Tensor:
    padded = nn.functional.pad(x, layer._reversed_padding_repeated_twice)
    spans = [step * (side - 1) for step, side in zip(layer.dilation, layer.kernel_size, strict=True)]
    sides = [
        (size - span - 1) // stride + 1
        for size, span, stride in zip(padded.shape[2:], spans, layer.stride, strict=True)
    ]
    places = _chosen(sides[0] * sides[1], positions, *seed).to(x.device)
    corners = (places // sides[1] * layer.stride[0], places % sides[1] * layer.stride[1])
    offsets = [
        torch.arange(0, span + 1, step, device=x.device) for span, step in zip(spans, layer.dilation, strict=True)
    ]
    rows = corners[0][:, None, None] + offsets[0][None, :, None]
    lines = corners[1][:, None, None] + offsets[1][None, None, :]
    patches = padded[:, :, rows, lines].unflatten(1, (layer.groups, -1))
    return patches.permute(1, 0, 3, 2, 4, 5).reshape(layer.groups, len(x) * len(places), -1)


def _chosen(count: int, positions: int, *seed: int | str) -> Tensor:
    if count <= positions:
        return torch.arange(count)
    return torch.randperm(count, generator=generator("positions", *seed))[:positions]
