"""Second moments taken in a stream, and the patches that a convolution multiplies its weight with."""

import pickle

import pytest
import torch
from torch import nn

from ptq_diffusion.rounding import Moments, MomentStream
from ptq_diffusion.rounding.moments import columns
from tests.rounding.problems import draw

WEIGHTS = torch.tensor([0.2, 0.8], dtype=torch.float64)


def batches(step, count=3):
    """Quantized and float inputs of a step whose mean is far from 0."""
    x_hat = draw(1, 30, 5, seed=step) + 10 * step
    return list(
        zip(x_hat.split(30 // count, 1), (x_hat + 0.1 * draw(1, 30, 5, seed=7)).split(30 // count, 1), strict=True)
    )


def stream(count, without_means, order=(0, 1)):
    taken = MomentStream(WEIGHTS, without_means)
    for part in range(count):
        for i in order:
            taken.add(i, *batches(i, count)[part])
    return taken.moments()


@pytest.mark.parametrize("without_means", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_gives_the_moments_of_all_at_once_whatever_the_split(without_means, count):
    second, difference = 0, 0
    for i, weight in enumerate(WEIGHTS.tolist()):
        ((x_hat, x),) = batches(i, 1)
        x_hat, change = x_hat[0].double(), (x - x_hat)[0].double()
        if without_means:
            x_hat, change = x_hat - x_hat.mean(0), change - change.mean(0)
        second, difference = second + weight * x_hat.T @ x_hat / 30, difference + weight * change.T @ x_hat / 30
    moments = stream(count, without_means, order=(1, 0))
    assert torch.allclose(moments.second[0].double(), second, rtol=1e-5, atol=1e-5)
    assert torch.allclose(moments.difference[0].double(), difference, rtol=1e-4, atol=1e-5)


def test_the_target_is_the_weight_that_gives_the_float_output_best_on_quantized_inputs():
    x_hat, weight = draw(1, 400, 5), draw(3, 5, seed=1)
    x = x_hat @ (torch.eye(5) + 0.2 * draw(5, 5, seed=2))
    taken = MomentStream(torch.ones(1, dtype=torch.float64), without_means=False)
    taken.add(0, x_hat, x)
    moments = taken.moments()
    target = moments.target(weight, 0)
    error = (x_hat[0] @ target.T - x[0] @ weight.T).square().mean()
    assert error < 1e-6 * (x_hat[0] @ weight.T - x[0] @ weight.T).square().mean()
    assert torch.equal(Moments(moments.second).target(weight, 0), weight)
    assert torch.equal(Moments(moments.second, torch.zeros(1, 5, 5)).target(weight, 0), weight)


def test_a_stream_of_more_batches_takes_no_more_memory():
    sizes = []
    for count in (1, 10):
        taken = MomentStream(WEIGHTS, without_means=False)
        for _ in range(count):
            taken.add(1, *batches(1, 1)[0])
        sizes.append(len(pickle.dumps(taken)))
    assert sizes[1] < 1.1 * sizes[0]


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"expected inputs .* got none; raise calibration.images"):
        MomentStream(WEIGHTS, without_means=False).moments()
    without_weight = MomentStream(torch.tensor([1.0, 0.0]), without_means=False)
    without_weight.add(1, draw(1, 4, 2))
    with pytest.raises(ValueError, match="at a step that has a weight"):
        without_weight.moments()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": (0, 2), "dilation": (2, 1)},
        {"padding": "same", "groups": 2},
        {"stride": (1, 3), "padding": 1, "groups": 4},
    ],
    ids=str,
)
def test_patches_times_the_weight_are_the_convolution(options):
    layer, x = nn.Conv2d(4, 8, 3, bias=False, **options), draw(2, 4, 7, 9)
    inputs = columns(layer, x, 1000)
    rows = layer.weight.detach().reshape(len(inputs), -1, inputs.shape[2])
    output = (inputs @ rows.mT).unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    assert torch.allclose(output, layer(x).flatten(2), atol=1e-5)
    some = columns(layer, x, 3, "a")
    assert some.shape == (len(inputs), 6, inputs.shape[2]) and torch.equal(some, columns(layer, x, 3, "a"))
    assert not torch.equal(some, columns(layer, x, 3, "b"))
    assert all((inputs == row[:, None]).all(2).any(1).all() for row in some.unbind(1)), "rows of the whole"


def test_tokens_are_the_inputs_of_a_linear_layer():
    layer, x = nn.Linear(5, 2), draw(3, 4, 5)
    assert torch.equal(columns(layer, x, 9), x.reshape(1, 12, 5))
    assert columns(layer, x, 2).shape == (1, 6, 5) and torch.equal(columns(layer, x[:, 0], 2), x[None, :, 0])
