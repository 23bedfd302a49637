"""Ranges by groups of steps: one group is static quantization, and each group is the static one of its steps."""

import pytest
import torch

from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import InputObservations, load_quantized, quantize, save_quantized
from ptq_diffusion.quantizer import ClusteredGroups, EqualGroups, GivenGroups, PerInputChannel
from tests.network.networks import ACTIVATION, TIMES, WEIGHT, by_step, constant, maker, observed, states
from tests.steps import at

BITS = LayerBits(8, 4)
EVERY = EqualGroups(len(TIMES), [])


def observed_in(denoiser, groups):
    observations = InputObservations(denoiser.sites(), ACTIVATION, groups, len(TIMES))
    for i, t in enumerate(TIMES):
        with observations.observing(denoiser.network, i):
            denoiser.predict(states(denoiser), at(t, i))
    observations.divide(groups)
    return observations


def network_of(denoiser, groups, plan=None):
    return quantize(denoiser, plan or constant(denoiser, BITS), observed_in(denoiser, groups), WEIGHT)


def rows(network, name):
    settings = network.layer(name).settings
    return torch.stack([settings.scale, settings.zero_point.float()], dim=1)


@pytest.mark.parametrize("activation", [ACTIVATION, maker(False, PerInputChannel())], ids=["tensor", "channel"])
@pytest.mark.parametrize("groups", [EqualGroups(1, []), EVERY, ClusteredGroups(2, [])], ids=["one", "every", "joined"])
@pytest.mark.parametrize("parts", [[(0, 2), (1,)], [(1,), (2,), (0,)]])
def test_what_several_observe_of_some_states_joins_to_what_one_observes_of_all(
    denoiser, tmp_path, activation, groups, parts
):
    """Also where one sees no state of a group of steps, or no more than another of a group."""

    def fresh():
        return InputObservations(denoiser.sites(), activation, groups, len(TIMES))

    def saw(steps):
        observations = fresh()
        for i in steps:
            with observations.observing(denoiser.network, i):
                denoiser.predict((1 + i) * states(denoiser), at(TIMES[i], i))
        return observations

    joined, alone = fresh(), saw(range(len(TIMES)))
    joined.join([saw(steps).tensors() for steps in parts])
    for name, observations in (("joined", joined), ("alone", alone)):
        observations.divide(groups)
        observations.save(tmp_path / name)
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize("groups", [EqualGroups(1, []), GivenGroups([0], []), ClusteredGroups(1, [])])
def test_one_group_is_static_quantization(denoiser, groups):
    static = quantize(denoiser, constant(denoiser, BITS), observed(denoiser), WEIGHT)
    assert network_of(denoiser, groups).fingerprint() == static.fingerprint()


@pytest.mark.parametrize("groups", [GivenGroups([0, 1], []), ClusteredGroups(2, [])])
def test_a_group_has_the_ranges_of_a_network_that_saw_only_its_steps(denoiser, groups):
    observations = observed_in(denoiser, groups)
    network, seen = quantize(denoiser, constant(denoiser, BITS), observations, WEIGHT), set()
    for steps in ((0,), (1, 2), (0, 1), (2,)):
        alone = InputObservations(denoiser.sites(), ACTIVATION)
        for i in steps:
            with alone.observing(denoiser.network):
                denoiser.predict(states(denoiser), at(TIMES[i]))
        for name in network.layers():
            division = observations.groups(name)
            if [i for i in range(len(TIMES)) if division[i] == division[steps[0]]] == list(steps):
                quantizer = alone.quantizer(name, BITS.activation)
                expected = torch.tensor([[float(quantizer.scale), float(quantizer.zero_point)]])
                assert torch.equal(rows(network, name)[list(steps)], expected.expand(len(steps), 2))
                seen.add((name, division[steps[0]]))
    assert seen == {(name, group) for name in network.layers() for group in (0, 1)}


def test_ranges_of_their_own_have_smaller_errors(denoiser):
    def error(network):
        names = [name for name in network.layers() if "time_emb" not in name]
        scales = torch.stack([rows(network, name)[:, 0] for name in names])
        return float(scales.mean())

    assert error(network_of(denoiser, EVERY)) < error(network_of(denoiser, EqualGroups(1, [])))


def test_inputs_made_of_the_time_alone_have_a_range_at_every_step(denoiser):
    network = network_of(denoiser, EqualGroups(1, ["time_embedding.*", "*.time_emb_proj"]))
    every, static = network_of(denoiser, EVERY), network_of(denoiser, EqualGroups(1, []))
    for name in network.layers():
        of_time = name.startswith("time_embedding.") or name.endswith(".time_emb_proj")
        expected = rows(every, name) if of_time else rows(static, name).expand(len(TIMES), 2)
        assert torch.equal(rows(network, name), expected)


def test_they_come_back_bit_for_bit_with_bits_by_step_too(denoiser, tmp_path):
    plan = by_step(denoiser, [BITS, LayerBits(8, 32), LayerBits(4, 8)])
    for place, network in enumerate((network_of(denoiser, EVERY), network_of(denoiser, EVERY, plan))):
        folder = tmp_path / str(place)
        folder.mkdir()
        save_quantized(network, folder)
        again = load_quantized(folder)
        assert again.fingerprint() == network.fingerprint()
        for i, t in enumerate(TIMES):
            predictions = [part.predict(states(denoiser), at(t, i)).m for part in (network, again)]
            assert torch.equal(*predictions)
        with pytest.raises(ValueError, match=f"a step of a table of {len(TIMES)}"):
            again.predict(states(denoiser), at(20.0, len(TIMES)))


def test_observations_come_back_with_their_groups(denoiser, tmp_path):
    origin = observed_in(denoiser, ClusteredGroups(2, ["conv_in"]))
    origin.save(tmp_path / "inputs")
    heir = InputObservations(denoiser.sites(), ACTIVATION)
    heir.restore(tmp_path / "inputs")
    for name in ("conv_in", "conv_out"):
        assert heir.groups(name) == origin.groups(name)
    networks = [quantize(denoiser, constant(denoiser, BITS), part, WEIGHT) for part in (origin, heir)]
    assert networks[0].fingerprint() == networks[1].fingerprint()


def test_ranges_and_bits_of_different_tables_are_refused(denoiser):
    plan = by_step(denoiser, [BITS, LayerBits(4, 8)])
    with pytest.raises(ValueError, match="of the 2 steps that the plan has bits for, got those of 3"):
        network_of(denoiser, EVERY, plan)
