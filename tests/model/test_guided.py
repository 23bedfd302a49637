"""Classifier-free guidance: its formula, its limits, and what it leaves alone."""

import pytest
import torch

from ptq_diffusion.model import Condition, Denoiser, Guided, WrappedDenoiser
from ptq_diffusion.model.plan import LayerBits
from tests.model.networks import around, small
from tests.network.networks import quantized, states
from tests.steps import at

CLASSES, NO_CLASS = 4, 3
NULL = Condition(labels=torch.tensor([NO_CLASS]))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return around(small(num_class_embeds=CLASSES)).eval().requires_grad_(False)


@pytest.fixture
def condition():
    return Condition(labels=torch.tensor([0, 1, 2]))


def test_a_wrapped_denoiser_forwards_all_that_the_contract_lets_another_default_answer():
    """What is forgotten there would be answered by the default of the contract, whatever the denoiser inside says."""
    computed = {"architecture", "rows"}  # from members that are forwarded
    members = {name for name, member in vars(Denoiser).items() if callable(member) or isinstance(member, property)}
    public = {name for name in members if not name.startswith("_")}
    assert public - set(vars(WrappedDenoiser)) == computed | {"predict", "fingerprint", "with_network"}


def guided(model, scale, interval=(0.0, 1.0)):
    return Guided(model, NULL, scale, interval)


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.0])
def test_it_is_the_formula(model, condition, scale):
    x = states(model)
    null, conditional = (model.predict(x, at(300.0), c).m for c in (NULL.expanded(len(x)), condition))
    m = guided(model, scale).predict(x, at(300.0), condition).m
    assert torch.allclose(m, null + scale * (conditional - null), atol=1e-5)
    assert not torch.allclose(m, conditional, atol=1e-3)


def test_at_scale_1_and_outside_of_its_interval_it_is_the_network_bit_for_bit(model, condition):
    x, plain = states(model), model.predict(states(model), at(300.0), condition).m
    assert torch.equal(guided(model, 1.0).predict(x, at(300.0), condition).m, plain)
    some = guided(model, 3.0, (0.4, 0.6))
    assert torch.equal(some.predict(x, at(300.0), condition).m, plain)
    assert [some.rows_per_image(at(t)) for t in (300.0, 400.0, 500.0, 600.0, 700.0)] == [1, 2, 2, 2, 1]
    assert not torch.equal(some.predict(x, at(500.0), condition).m, model.predict(x, at(500.0), condition).m)


def test_features_of_a_guided_quantized_network_times_the_output_layer_are_m(model, condition):
    network = guided_quantized(model, 2.0, condition)
    for t in (100.0, 700.0):
        m, features, _ = network.predict(states(model), at(t), condition)
        assert features is not None and len(features) == len(m)
        layer = network.output_layer
        assert torch.allclose(layer.compute(features, *layer.operands(0)), m, atol=1e-5)


def guided_quantized(model, scale, condition):
    return quantized(guided(model, scale), LayerBits(4, 8), condition=condition)


def test_a_row_belongs_to_its_image(model, condition):
    """The other images of the batch change nothing."""
    network, x = guided_quantized(model, 2.0, condition), states(model)
    alone = network.predict(x[1:2].repeat(3, 1, 1, 1), at(100.0), condition.rows([1, 1, 1])).m[0]
    assert torch.allclose(alone, network.predict(x, at(100.0), condition).m[1], atol=1e-5)


def test_marks_of_images_are_those_of_their_rows(model, condition):
    """Whatever a layer has a row for."""
    both, images = guided(model, 2.0), torch.tensor([True, False, True])
    rows = torch.cat([states(model), 10 + states(model)])
    marked = rows[both.rows(images, at(100.0))]
    assert torch.equal(both.combined(marked, at(100.0)), both.combined(rows, at(100.0))[images])


def test_fingerprints_tell_guidance_apart(model, condition):
    networks = [
        model,
        guided(model, 2.0),
        guided(model, 3.0),
        guided(model, 2.0, (0.0, 0.5)),
        Guided(model, Condition(labels=torch.tensor([0])), 2.0, (0.0, 1.0)),
    ]
    assert len({network.fingerprint() for network in networks}) == len(networks)
    assert guided(model, 2.0).fingerprint() == networks[1].fingerprint()
    prints = {guided_quantized(model, scale, condition).fingerprint() for scale in (2.0, 3.0)}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("null", "scale", "interval", "message"),
    [
        (Condition(labels=torch.tensor([0, 1])), 2.0, (0.0, 1.0), "one sample, got that of 2"),
        (NULL, float("nan"), (0.0, 1.0), "finite scale"),
        (NULL, 2.0, (0.5, 0.1), r"within \[0, 1\]"),
        (NULL, 2.0, (0.0, 1000.0), r"within \[0, 1\]"),
    ],
)
def test_it_refuses_what_is_no_guidance(model, null, scale, interval, message):
    with pytest.raises(ValueError, match=message):
        Guided(model, null, scale, interval)


def test_it_is_not_asked_without_a_condition(model):
    with pytest.raises(ValueError, match="condition=labels"):
        guided(model, 2.0).predict(states(model), at(1.0))


def test_the_work_is_counted_for_every_row(model):
    steps = [at(t, i) for i, t in enumerate((900.0, 500.0, 100.0))]
    assert model.architecture(steps).rows == (1, 1, 1)
    assert guided(model, 2.0, (0.4, 1.0)).architecture(steps).rows == (2, 2, 1)
    assert guided(model, 2.0).architecture().rows == ()
