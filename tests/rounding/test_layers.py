"""What every rounding of single layers keeps to, whatever the weight's quantizer."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.network import QuantizedWeight
from ptq_diffusion.rounding import GPTQ, Inputs, LayerRounding, Moments, UniformSteps
from tests.experiments import composed
from tests.rounding.problems import GRIDS, SHAPE, correlated, draw, quantizer_of, uncorrelated

FILES = sorted((Path(__file__).parents[2] / "conf" / "rounding").glob("*.yaml"))
QUICK = OmegaConf.create({"descent": {"iterations": 250, "learning_rate": 0.1}})


def built(name):
    """The rounding of a file, which learns in fewer steps."""
    options = composed(f"rounding={name}").rounding
    return construct(OmegaConf.merge(options, QUICK) if "descent" in options else options)


EVERY = {path.stem: built(path.stem) for path in FILES}
LAYERED = {name: rounding for name, rounding in EVERY.items() if isinstance(rounding, LayerRounding)}
INPUTS = Inputs("float", "weight", False, UniformSteps())


def changes(integers, weight, quantizer, second):
    """The mean square change of every output channel."""
    change = (quantizer.from_integers(integers) - weight).flatten(1).double()
    return ((change @ second.double()) * change).sum(1)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("symmetric", "granularity"), GRIDS)
@pytest.mark.parametrize("rounding", LAYERED.values(), ids=LAYERED)
def test_integers_are_of_the_grid_and_no_channel_is_worse_than_nearest(rounding, symmetric, granularity, bits):
    weight = draw(*SHAPE)
    quantizer, moments = quantizer_of(weight, bits, symmetric, granularity), correlated(weight[0].numel())
    integers = rounding.integers(weight, quantizer, moments)
    assert integers.dtype == torch.int32 and integers.shape == weight.shape
    stored = QuantizedWeight.of_integers(integers, quantizer)
    assert torch.equal(stored.values(), quantizer.from_integers(integers))
    nearest = changes(quantizer.to_integers(weight), weight, quantizer, moments.second[0])
    rounded = changes(integers, weight, quantizer, moments.second[0])
    assert (rounded <= nearest).all()
    # Most of what these inputs see of an error lies in three directions of 36, which the others can take up.
    assert rounded.sum() < 0.6 * nearest.sum()


@pytest.mark.parametrize("rounding", LAYERED.values(), ids=LAYERED)
def test_groups_of_channels_are_rounded_each_by_its_own_moments(rounding):
    weight = draw(*SHAPE)
    quantizer, moments = quantizer_of(weight, 3), correlated(weight[0].numel(), groups=2)
    integers = rounding.integers(weight, quantizer, moments)
    for group, rows in enumerate((slice(0, 3), slice(3, 6))):
        alone = rounding.integers(weight[rows], quantizer_of(weight[rows], 3), Moments(moments.second[group, None]))
        assert torch.equal(integers[rows], alone)


@pytest.mark.parametrize(("symmetric", "granularity"), GRIDS)
def test_without_correlation_error_feedback_is_rounding_to_nearest_ties_included(symmetric, granularity):
    weight = draw(*SHAPE)
    quantizer = quantizer_of(weight, 4, symmetric, granularity)
    scale, zero_point = quantizer.spread(weight)
    halves = ((quantizer.to_integers(weight) - zero_point) + 0.5) * scale
    for values in (weight, halves):
        rounded = GPTQ(INPUTS).integers(values, quantizer, uncorrelated(weight[0].numel()))
        assert torch.equal(rounded, quantizer.to_integers(values))


def test_moments_of_another_layer_are_refused():
    weight = draw(*SHAPE)
    with pytest.raises(ValueError, match=r"36 inputs of every row .* got those of 35 in 1 groups"):
        GPTQ(INPUTS).integers(weight, quantizer_of(weight, 4), uncorrelated(35))


@pytest.mark.parametrize("damping", [0, -1, float("inf")])
def test_damping_that_inverts_nothing_is_refused(damping):
    with pytest.raises(ValueError, match="expected a damping above 0"):
        GPTQ(INPUTS, damping)


def test_inputs_that_are_always_zero_leave_nearest():
    weight = draw(5, 4)
    quantizer = quantizer_of(weight, 3)
    assert torch.equal(
        GPTQ(INPUTS).integers(weight, quantizer, Moments(torch.zeros(1, 4, 4))), quantizer.to_integers(weight)
    )


def test_moments_without_an_inverse_name_the_damping():
    """Two inputs that are always equal, damped by less than float64 tells apart."""
    weight, second = draw(4, 2), torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="damping=1e-30; raise rounding.damping"):
        GPTQ(INPUTS, 1e-30).integers(weight, quantizer_of(weight, 4), Moments(second))
    assert GPTQ(INPUTS, 0.01).integers(weight, quantizer_of(weight, 4), Moments(second)).shape == weight.shape
