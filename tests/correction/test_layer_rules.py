"""Rescaled layers in other orders, with other gains, and with one gain for all steps."""

import pytest
import torch

from ptq_diffusion.correction import AtOnce, Chain, EachStep, InSequence, Matched, PooledSteps, Rescaled
from ptq_diffusion.correction.layer_rules import LayerRules, rescalings_towards
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.network import DeviationRatio, LeastSquares, watching
from ptq_diffusion.quantizer import LpSearch
from tests.correction.pipelines import states
from tests.steps import at

GAINS, ORDERS = [DeviationRatio(), LeastSquares()], [InSequence(), AtOnce()]
STEP = at(400.0)
TIMES = (800.0, 400.0, 100.0)
every_gain = pytest.mark.parametrize("gain", GAINS, ids=lambda gain: type(gain).__name__)
every_order = pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)


def rescaled(gain, order, steps, range_search=None):
    return Rescaled(range_search, 64, "float", gain=gain, order=order, steps=steps)


def path(model, times=TIMES):
    return [PathState(states(model, i)[:16], at(t, i), None) for i, t in enumerate(times)]


def three_of_four(x):
    return x[torch.arange(len(x)) % 4 != 3]


def targets_of(pair, gain, x, step=STEP):
    model, quantized = pair
    layers, targets = quantized.inner_layers(), {}

    def see(name, m):
        targets[name] = gain.target(m, layers[name].channels)

    with torch.no_grad(), watching(model.network, layers, see):
        model.predict(x, step)
    return targets


def towards(pair, targets, x, order, range_search=None):
    with torch.no_grad():
        return rescalings_towards(targets, pair[1], PathState(x, STEP, None), LayerRules(range_search, order=order))[0]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    for name, rescaling in ours.items():
        others = theirs[name].tensors()
        assert all(torch.equal(tensor, others[field]) for field, tensor in rescaling.tensors().items())


@every_gain
def test_at_once_every_layer_is_matched_as_if_it_were_the_only_one(gain, pair):
    x = states(pair[0], 0)[:8]
    targets = targets_of(pair, gain, x)
    together = towards(pair, targets, x, AtOnce())
    sequence = towards(pair, targets, x, InSequence())
    for name in (list(targets)[0], list(targets)[2], list(targets)[-1]):
        one = {name: targets[name]}
        assert_same(towards(pair, one, x, AtOnce()), {name: together[name]})
        assert_same(towards(pair, one, x, InSequence()), towards(pair, one, x, AtOnce()))
    last = list(targets)[-1]
    assert not torch.equal(sequence[last].offset, together[last].offset)


@every_gain
def test_in_sequence_the_first_layer_is_matched_as_at_once(gain, pair):
    x = states(pair[0], 0)[:8]
    targets = targets_of(pair, gain, x)
    one, other = (towards(pair, targets, x, order, LpSearch(2.0, 20)) for order in ORDERS)
    first = next(iter(targets))
    assert_same({first: one[first]}, {first: other[first]})


def chosen(pair, correction, state):
    """The rescalings of a step before it is judged whether they help."""
    x = three_of_four(state.x_t)
    with torch.no_grad():
        targets = targets_of(pair, correction.gain, x, state.step)
        return rescalings_towards(targets, pair[1], PathState(x, state.step, None), correction.rules)[0]


@every_gain
@every_order
@torch.no_grad()
def test_pooled_over_one_step_is_each(gain, order, pair):
    x, search = states(pair[0], 0)[:8], LpSearch(2.0, 20)
    network = targets_of(pair, gain, x), pair[1], PathState(x, STEP, None)
    each, comparisons = rescalings_towards(*network, LayerRules(search, order=order))
    informed = PooledSteps().informed([comparisons])
    assert_same(rescalings_towards(*network, LayerRules(search, order=order, steps=informed))[0], each)


@every_gain
@every_order
@torch.no_grad()
def test_pooled_steps_share_a_gain_and_keep_their_own_grids(gain, order, pair):
    states_ahead = path(pair[0])
    informed = rescaled(gain, order, PooledSteps(), LpSearch(2.0, 20)).ahead(*pair, states_ahead)
    first, *others = (chosen(pair, informed, state) for state in states_ahead)
    for other in others:
        for name in first:
            assert torch.equal(other[name].gain, first[name].gain)
            assert torch.equal(other[name].offset, first[name].offset)
        assert not torch.equal(other["conv_in"].input_grid.scale, first["conv_in"].input_grid.scale)
    own = chosen(pair, rescaled(gain, order, EachStep(), LpSearch(2.0, 20)), states_ahead[0])
    assert any(not torch.allclose(own[name].gain, first[name].gain) for name in own)


@torch.no_grad()
def test_a_chain_looks_ahead_with_its_first_link_and_is_not_changed(pair):
    links = {"rescaled": rescaled(*GAINS[:1], ORDERS[0], PooledSteps()), "matched": Matched("original", "float", None)}
    chain = Chain(links)
    assert chain.looks_ahead and not chain.keeps_outputs
    informed, alone = (one.ahead(*pair, path(pair[0])) for one in (chain, links["rescaled"]))
    x, step = states(pair[0], 5)[:16], at(300.0)
    assert_same(*(one.rescalings(*pair, PathState(x, step, None))[0] for one in (informed, alone)))
    with pytest.raises(RuntimeError, match="expected pooled steps to be compared .* call ahead"):
        chain.rescalings(*pair, PathState(x, step, None))


def test_who_does_not_look_ahead_asks_nothing(pair):
    def path_unasked():
        yield pytest.fail("no state is needed")

    plain = rescaled(LeastSquares(), AtOnce(), EachStep())
    assert plain.ahead(*pair, path_unasked()) is plain
    assert plain.keeps_outputs and not plain.looks_ahead


def test_pooled_steps_along_the_corrected_path_are_refused():
    with pytest.raises(ValueError, match=r"along float sampling, got path=corrected.*; set correction.path=float"):
        Rescaled(None, 64, "corrected", steps=PooledSteps())
