"""Bits from the command line: what is measured, planned and quantized."""

import json
import shutil
from itertools import product

import pytest
import torch

from ptq_diffusion.bitwidth import Sensitivity, StepSignal
from ptq_diffusion.bitwidth.changes import Changes, rising_weights
from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import load_quantized
from ptq_diffusion.numeric.spectrum import Whitening
from ptq_diffusion.rounding.artefact import INTEGERS, read_integers
from ptq_diffusion.sampler import sample
from ptq_diffusion.stage.float_path import noise_chunks
from ptq_diffusion.stage.plan import PLAN
from ptq_diffusion.stage.planning.changes import CHUNKS, BackwardSampling
from ptq_diffusion.stage.sensitivity import MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from tests.experiments import composed

BUDGET = ["bitwidth=budget", "bitwidth.saving=20", "bitwidth.activations=[3,8]", "sensitivity.images=6"]
OFFERS = [*BUDGET, "bitwidth.weights=[3,8]"]
QUICK = [*BUDGET, "sensitivity.images=2", "noise.images=2"]
SNR = ["bitwidth=step_snr"]
STEPS = 2


@pytest.fixture
def model(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture
def tiny(tiny):
    """As everywhere, with fewer steps."""
    return [*tiny, f"sampler.steps={STEPS}"]


def names(model):
    """Of the layers whose bits are measured."""
    return [site.name for site in model.sites() if site.weighted and site.name not in ("conv_in", "conv_out")]


# Evidence.


def test_sensitivities_are_of_all_inner_layers_at_all_steps(shared, model):
    folder = shared("goal=sensitivity", *OFFERS)
    found, made = Sensitivity.load(folder / MeasureSensitivity.file), folder.parents[1] / "changes"
    before = sorted(made.iterdir())
    assert list(found.sites) == names(model) and found.steps == STEPS
    assert found.weight_bits == found.activation_bits == (3, 8)
    # All images have the same time, so that a correction's offset leaves no error of what reads the time alone.
    reads_time = torch.tensor(["time_emb" in name for name in found.sites])
    for damage in (found.weight, found.activation):
        assert damage.shape == (len(found.sites), STEPS, 2) and (damage[~reads_time] > 0).all()
        damage = damage[~reads_time]
        # One direction of x_0 for each image: a layer may be lucky, but not most of them.
        assert (damage[..., 0] > damage[..., 1]).double().mean() > 0.9
        assert damage[..., 0].sum() > 20 * damage[..., 1].sum()
    assert found.network == model.fingerprint()
    measured = shared("goal=changes", *OFFERS)
    parts, numbers = list(read_chunks(measured / CHUNKS)), 6 * torch.Size(model.shape).numel()
    changes = torch.cat([part["weight"] for part in parts], dim=-1)
    weights = rising_weights(STEPS, 0.28)[:, None]
    assert len(parts) == 2 and torch.allclose(found.weight, Changes.of(changes).together() * weights / numbers, atol=0)
    alike = Sensitivity.load(shared("goal=sensitivity", *OFFERS, "sensitivity.first_step=1") / MeasureSensitivity.file)
    assert torch.allclose(alike.weight * weights, found.weight, atol=0)
    assert sorted(made.iterdir()) == before, "weights of steps measure nothing anew"


class Killed(BaseException):
    """What no code catches."""


def test_a_change_is_relative_to_the_variance_of_float_images_from_the_noise_of_the_fit(
    shared, tiny, model, monkeypatch
):
    """Of as many as the sensitivity is measured on, and of no others."""
    seen, goal = [], ["goal=changes", *BUDGET, "force=changes"]

    def ends(images):
        seen.append(images)
        raise Killed

    monkeypatch.setattr(Whitening, "of", ends)
    with pytest.raises(Killed):
        shared(*goal)
    cfg = composed(*tiny, *goal)
    table, expected = construct(cfg.sampler).table(dict(model.scheduler_config)), []
    for chunk in noise_chunks(cfg):
        noise = chunk.noise(model.shape)
        *_, last = sample(lambda x_t, step: model.predict(x_t, step).m, table, noise)
        expected.append(last.x_s[: chunk.count])
    (images,) = seen
    assert torch.allclose(images, torch.cat(expected)[:6], rtol=0, atol=1e-5)


def test_distance_and_steps_change_what_a_sensitivity_says(shared):
    """Of the same direction: alone a step counts less; by pixel the damage is another one."""
    found = {
        case: Sensitivity.load(
            shared("goal=sensitivity", *OFFERS, f"sensitivity.distance={case[0]}", f"sensitivity.steps={case[1]}")
            / MeasureSensitivity.file
        )
        for case in product(("mahalanobis", "euclidean"), ("correlated", "independent"))
    }
    for distance in ("mahalanobis", "euclidean"):
        together, alone = found[distance, "correlated"].activation, found[distance, "independent"].activation
        assert (together >= alone).all() and (together > alone).any()
    by_pixel, relative = (found[one, "independent"].activation for one in ("euclidean", "mahalanobis"))
    shares = [damage / damage.sum() for damage in (by_pixel, relative)]
    assert not torch.allclose(*shares, rtol=0.1)


def test_policies_that_offer_the_same_share_their_sensitivity(shared):
    of_this_test_alone = [*QUICK[1:], "bitwidth.activations=[4,8]"]
    measured = shared("goal=plan", *QUICK[:1], *of_this_test_alone).parents[1] / "sensitivity"
    before = sorted(measured.iterdir())
    shared("goal=plan", "bitwidth=greedy", *of_this_test_alone, "bitwidth.over=steps")
    assert before and sorted(measured.iterdir()) == before


def test_sensitivities_of_weights_know_the_rounding_where_their_bits_are_chosen(shared, model):
    """Their integers are those that the rounding gives a network of so many bits."""
    rounding = "rounding=gptq"
    goal = ["goal=sensitivity", rounding, *QUICK, "bitwidth.activations=[8]", "bitwidth.saving=5"]
    offers = [*goal, "bitwidth.weights=[3,4]"]
    nearest, fed_back = (
        Sensitivity.load(shared(*offers, *more) / MeasureSensitivity.file) for more in (["rounding=nearest"], [])
    )
    assert torch.equal(fed_back.activation, nearest.activation) and not torch.equal(fed_back.weight, nearest.weight)
    store = shared(*offers).parents[1]
    stages = ("offers", "sensitivity", "changes")
    before = {stage: sorted((store / stage).iterdir()) for stage in stages}
    integers = read_integers(shared(*offers, "goal=offers") / INTEGERS)
    for bits in (3, 4):
        alone = read_integers(shared("goal=reconstruct", rounding, f"bitwidth=w{bits}a8") / INTEGERS)
        assert all(torch.equal(integers[name, bits], alone[name, bits]) for name in names(model))
    shared(*offers, "goal=plan")
    assert before == {stage: sorted((store / stage).iterdir()) for stage in stages}, "a plan reads what these made"
    roundings = ("nearest", "gptq", "brecq")
    folders = {shared(*goal, "bitwidth.weights=[3]", f"rounding={one}") for one in roundings}
    assert len(folders) == 1, "one bitwidth leaves nothing to choose, whatever the rounding"


def test_a_killed_measurement_goes_on_and_ends_with_the_same_bytes(make, shared, tmp_path, monkeypatch):
    goal = ["goal=changes", *OFFERS]
    whole = shared(*goal)
    assert len(list(read_chunks(whole / CHUNKS))) == 2
    beside = shutil.ignore_patterns("changes", "sensitivity")
    shutil.copytree(whole.parents[2], tmp_path / "outputs", ignore=beside)
    forward, chunks = BackwardSampling.forward, []

    def dies(self, chunk, device):
        if len(chunks) == 1:
            raise Killed
        chunks.append(chunk)
        return forward(self, chunk, device)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(BackwardSampling, "forward", dies)
        make(*goal)
    monkeypatch.setattr(BackwardSampling, "forward", lambda *words: chunks.append(words[1]) or forward(*words))
    again = make(*goal)
    assert len(chunks) == 2, "each chunk once"
    for file in whole.rglob("*.safetensors"):
        assert (again / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_the_signal_and_noise_of_every_offer_are_those_of_its_network(shared):
    """The error falls with the bits, and the offer in float has none."""
    offers = "bitwidth.offered=[{weight:4,activation:3},{weight:4,activation:8},{weight:32,activation:32}]"
    folder = shared("goal=step_signal", *SNR, offers, "bitwidth.first={weight:32,activation:32}")
    found = StepSignal.load(folder / MeasureStepSignal.file)
    assert found.offered == (LayerBits(4, 3), LayerBits(4, 8), LayerBits(32, 32)) and found.steps == STEPS
    assert torch.equal(found.signal, found.signal[:1].expand(3, STEPS))
    assert (found.error[0] > found.error[1]).all() and (found.error[1] > found.error[2]).all()
    for error, name in zip(found.error, ("W4A3", "W4A8", "W32A32"), strict=True):
        chunks = list(read_chunks(folder / "chunks" / name))
        assert len(chunks) == 2 and torch.equal(error, chunks[0]["error"] + chunks[1]["error"])


# Plans and networks.


def read_plan(folder):
    return BitwidthPlan.from_json((folder / PLAN).read_text())


@pytest.mark.parametrize(
    "words",
    [
        ["bitwidth=w4a6"],
        ["bitwidth=share"],
        [*SNR, "bitwidth.offered=[{weight:4,activation:4},{weight:4,activation:6}]"],
        QUICK,
        [*QUICK, "bitwidth.over=layers"],
        ["bitwidth=random", "bitwidth.saving=20"],
    ],
    ids=" ".join,
)
def test_a_network_is_quantized_by_its_plan(shared, model, words):
    quantized = load_quantized(shared("goal=quantize", *words))
    plan = read_plan(shared("goal=plan", *words))
    assert quantized.plan == plan and list(plan.sites) == [site.name for site in model.sites()]
    for name, layer in quantized.layers().items():
        for i in range(STEPS):
            bits, grid = plan.at(name, i), layer.settings.grid(i)
            assert layer.weights[layer.settings.weight_copy(i)].bits == bits.weight
            assert (32 if grid is None else grid.bits) == bits.activation


def test_a_budget_of_layers_is_the_same_at_every_step(shared):
    assert read_plan(shared("goal=plan", *QUICK, "bitwidth.over=layers")).steps == 1
    plan = read_plan(shared("goal=plan", *QUICK, "bitwidth.over=steps"))
    inner = {plan.activation[name] for name in plan.sites if name.endswith("conv1")}
    assert len(inner) == 1


def test_equal_plans_are_one_network(shared):
    """Whatever policy made them, the files of the network are the same bytes."""
    first = shared("goal=quantize", "bitwidth=w4a8")
    second = shared("goal=quantize", "bitwidth=share", "bitwidth.share=0")
    assert first != second
    for name in ("quantized.json", "quantized.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_network_of_changing_bits_is_corrected_and_judged(report, outputs):
    """From measurement to report, with the policy that reads the most."""
    found, _ = report(*QUICK, "correction=ptqd", f"outputs={outputs}")
    rows = {row["variant"]: row for row in found["rows"]}
    assert rows["quantized"]["bops_per_image"] < rows["full_precision"]["bops_per_image"] / 19
    assert {"plan", "quantize"} <= set(found["signatures"])


def test_the_same_inputs_serve_all_bits(shared):
    """Calibration does not depend on a policy."""
    (folder,) = {shared("goal=calibrate", f"bitwidth={name}") for name in ("w4a8", "w4a4", "budget")}
    assert [path.name for path in folder.iterdir() if path.suffix == ".safetensors"] == ["inputs.safetensors"]
    assert json.loads((folder / "files.json").read_text()).keys() >= {"inputs.safetensors"}
