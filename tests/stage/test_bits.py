"""Bits from the command line: what is measured, planned and quantized, and what is refused before anything is."""

import json
from itertools import product

import pytest
import torch
from omegaconf import OmegaConf

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

BUDGET = ["bitwidth=budget", "bitwidth.saving=20", "bitwidth.activations=[3,8]", "sensitivity.images=6"]
QUICK = [*BUDGET, "sensitivity.images=2", "noise.images=2"]
SNR = ["bitwidth=step_snr"]
STEPS = 3


@pytest.fixture
def model(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


def names(model):
    """Of the layers whose bits are measured."""
    return [site.name for site in model.sites() if site.weighted and site.name not in ("conv_in", "conv_out")]


# Evidence.


def test_sensitivities_are_of_all_inner_layers_at_all_steps(make, model):
    folder = make("goal=sensitivity", *BUDGET, "bitwidth.weights=[3,8]")
    found = Sensitivity.load(folder / MeasureSensitivity.file)
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
    (measured,) = [path for path in (folder.parents[1] / "changes").iterdir() if path.is_dir()]
    parts, numbers = list(read_chunks(measured / CHUNKS)), 6 * torch.Size(model.shape).numel()
    changes = torch.cat([part["weight"] for part in parts], dim=-1)
    weights = rising_weights(STEPS, 0.28)[:, None]
    assert len(parts) == 2 and torch.allclose(found.weight, Changes.of(changes).together() * weights / numbers, atol=0)
    words = [*BUDGET, "bitwidth.weights=[3,8]", "sensitivity.first_step=1"]
    alike = Sensitivity.load(make("goal=sensitivity", *words) / MeasureSensitivity.file)
    assert torch.allclose(alike.weight * weights, found.weight, atol=0)
    assert len(list(measured.parent.glob("*.seconds"))) == 1, "weights of steps measure nothing anew"


def test_a_change_is_relative_to_the_variance_of_float_images_from_the_noise_of_the_fit(make, model, monkeypatch):
    """Of as many as the sensitivity is measured on, and of no others."""
    seen, of = [], Whitening.of
    monkeypatch.setattr(Whitening, "of", lambda images: seen.append(images) or of(images))
    cfg = OmegaConf.load(make("goal=changes", *BUDGET) / "config.yaml")
    table, expected = construct(cfg.sampler).table(dict(model.scheduler_config)), []
    for chunk in noise_chunks(cfg):
        noise = chunk.noise(model.shape)
        *_, last = sample(lambda x_t, step: model.predict(x_t, step).m, table, noise)
        expected.append(last.x_s[: chunk.count])
    (images,) = seen
    assert torch.allclose(images, torch.cat(expected)[:6], rtol=0, atol=1e-5)


def test_distance_and_steps_change_what_a_sensitivity_says(make, model):
    """Of the same direction: alone a step counts less; by pixel the damage is another one."""
    found = {
        case: Sensitivity.load(
            make("goal=sensitivity", *BUDGET, f"sensitivity.distance={case[0]}", f"sensitivity.steps={case[1]}")
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


def test_policies_that_offer_the_same_share_their_sensitivity(make):
    make("goal=plan", *QUICK)
    store = make("goal=plan", *QUICK[1:], "bitwidth=greedy", "bitwidth.over=steps").parents[1]
    assert len([path for path in (store / "sensitivity").iterdir() if path.is_dir()]) == 1


def test_sensitivities_of_weights_know_the_rounding_where_their_bits_are_chosen(make, model):
    """Their integers are those that the rounding gives a network of so many bits."""
    few = ["sampler.steps=2", "calibration.images=2", "rounding=gptq"]
    goal = ["goal=sensitivity", *few, *QUICK, "bitwidth.weights=[3,4]"]
    nearest, fed_back = (
        Sensitivity.load(make(*goal, *more) / MeasureSensitivity.file) for more in (["rounding=nearest"], [])
    )
    assert torch.equal(fed_back.activation, nearest.activation) and not torch.equal(fed_back.weight, nearest.weight)
    integers = read_integers(make(*goal, "goal=offers") / INTEGERS)
    for bits in (3, 4):
        alone = read_integers(make("goal=reconstruct", *few, f"bitwidth=w{bits}a8") / INTEGERS)
        assert all(torch.equal(integers[name, bits], alone[name, bits]) for name in names(model))
    store = make(*goal, "bitwidth.saving=5", "goal=plan").parents[1]
    counts = {stage: len(list((store / stage).glob("*.seconds"))) for stage in ("offers", "sensitivity")}
    assert counts == {"offers": 1, "sensitivity": 2}, "a plan reads what these goals make by themselves"
    roundings = ("nearest", "gptq", "brecq")
    folders = {make(*goal, "bitwidth.weights=[3]", f"rounding={one}") for one in roundings}
    assert len(folders) == 1, "one bitwidth leaves nothing to choose, whatever the rounding"


class Killed(BaseException):
    """What no code catches."""


def test_a_killed_measurement_goes_on_and_ends_with_the_same_bytes(make, tmp_path, monkeypatch):
    goal = ["goal=changes", *BUDGET, "sampler.steps=2"]
    whole = make(*goal, f"outputs={tmp_path / 'whole'}")
    assert len(list(read_chunks(whole / CHUNKS))) == 2
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


def test_the_signal_and_noise_of_every_offer_are_those_of_its_network(make, model):
    """The error falls with the bits, and the offer in float has none."""
    offers = "bitwidth.offered=[{weight:4,activation:3},{weight:4,activation:8},{weight:32,activation:32}]"
    folder = make("goal=step_signal", *SNR, offers, "bitwidth.first={weight:32,activation:32}")
    found = StepSignal.load(folder / MeasureStepSignal.file)
    assert found.offered == (LayerBits(4, 3), LayerBits(4, 8), LayerBits(32, 32)) and found.steps == STEPS
    assert torch.equal(found.signal, found.signal[:1].expand(3, STEPS))
    assert (found.error[0] > found.error[1]).all() and (found.error[1] > found.error[2]).all()
    for error, name in zip(found.error, ("W4A3", "W4A8", "W32A32"), strict=True):
        chunks = list(read_chunks(folder / "chunks" / name))
        assert len(chunks) == 2 and torch.equal(error, chunks[0]["error"] + chunks[1]["error"])


# Plans and networks.


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder in which the ranges and sensitivities that plans share are made once."""
    return tmp_path_factory.mktemp("plans")


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
def test_a_network_is_quantized_by_its_plan(make, model, outputs, words):
    plan = read_plan(make("goal=plan", *words, f"outputs={outputs}"))
    quantized = load_quantized(make("goal=quantize", *words, f"outputs={outputs}"))
    assert quantized.plan == plan and list(plan.sites) == [site.name for site in model.sites()]
    for name, layer in quantized.layers().items():
        for i in range(STEPS):
            bits, grid = plan.at(name, i), layer.settings.grid(i)
            assert layer.weights[layer.settings.weight_copy(i)].bits == bits.weight
            assert (32 if grid is None else grid.bits) == bits.activation


def test_a_budget_of_layers_is_the_same_at_every_step(make):
    assert read_plan(make("goal=plan", *QUICK, "bitwidth.over=layers")).steps == 1
    plan = read_plan(make("goal=plan", *QUICK, "bitwidth.over=steps"))
    inner = {plan.activation[name] for name in plan.sites if name.endswith("conv1")}
    assert len(inner) == 1


def test_equal_plans_are_one_network(make):
    """Whatever policy made them, the files of the network are the same bytes."""
    first = make("goal=quantize", "bitwidth=w4a8")
    second = make("goal=quantize", "bitwidth=share", "bitwidth.share=0")
    assert first != second
    for name in ("quantized.json", "quantized.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_network_of_changing_bits_is_corrected_and_judged(report):
    """From measurement to report, with the policy that reads the most."""
    found, _ = report(*QUICK, "correction=ptqd")
    rows = {row["variant"]: row for row in found["rows"]}
    assert rows["quantized"]["bops_per_image"] < rows["full_precision"]["bops_per_image"] / 19
    assert {"plan", "quantize"} <= set(found["signatures"])


def test_the_same_inputs_serve_all_bits(make):
    """Calibration does not depend on a policy."""
    (folder,) = {make("goal=calibrate", f"bitwidth={name}") for name in ("w4a8", "w4a4", "budget")}
    assert [path.name for path in folder.iterdir() if path.suffix == ".safetensors"] == ["inputs.safetensors"]
    assert json.loads((folder / "files.json").read_text()).keys() >= {"inputs.safetensors"}


# What is refused before anything is computed.


REFUSED = {
    "a budget below the cheapest plan": ([*BUDGET, "bitwidth.saving=500"], "saving of at most .* lower saving"),
    "bytes below the cheapest plan": (
        ["bitwidth=budget", "bitwidth.saving=null", "bitwidth.bytes=10"],
        "bytes of at least .* raise bytes",
    ),
    "no budget": (["bitwidth=budget", "bitwidth.saving=null"], "set saving"),
    "bits that no quantizer has": ([*BUDGET, "bitwidth.activations=[1,4]"], "2 to 8, which quantizers have, got 1"),
    "nine bits": ([*BUDGET, "bitwidth.weights=[4,9]"], "2 to 8, which quantizers have, got 9"),
    "bits out of order": ([*BUDGET, "bitwidth.weights=[8,4]"], "ascending order"),
    "a pattern that matches nothing": (
        [*BUDGET, "bitwidth.patterns=[{name:nowhere,weight:8,activation:8}]"],
        "'nowhere' to match a layer",
    ),
    "another table": ([*BUDGET, "noise.steps=6"], "set noise.steps=null"),
    "another table of a share": (["bitwidth=share", "noise.steps=6"], "got noise.steps=6 with share"),
    "another table of a measurement": (["goal=step_signal", "noise.steps=6"], "got noise.steps=6 with step_signal"),
    "more images than the float path has": (
        [*BUDGET, "sensitivity.images=8"],
        "sensitivity.images of at most noise.images, 7, .*got 8; raise noise.images",
    ),
    "the variance of one image": (
        [*BUDGET, "sensitivity.images=1"],
        "sensitivity.images of at least 2, .*got 1; .* sensitivity.distance=euclidean",
    ),
    "a distance that is none": ([*BUDGET, "sensitivity.distance=manhattan"], "'mahalanobis' or 'euclidean'"),
    "a first step above the last": (
        [*BUDGET, "sensitivity.first_step=1.5"],
        "first_step to be less than or equal to 1",
    ),
    "a first step of no weight": ([*BUDGET, "sensitivity.first_step=0"], "first_step to be greater than 0"),
    "no images": ([*BUDGET, "sensitivity.images=0"], "sensitivity.images to be greater than 0"),
    "integers of no offers": (
        ["goal=offers", "rounding=gptq"],
        "a budget that offers weights several bitwidths .* got bitwidth=w4a8",
    ),
    "integers of no rounding": (
        ["goal=offers", *BUDGET, "bitwidth.weights=[3,4]"],
        "and a rounding that reads something, got .* rounding=nearest; set .* rounding=gptq",
    ),
    "sensitivities of a policy without offers": (["goal=sensitivity"], "got w4a8; .* such as bitwidth=budget"),
    "a channel for each activation": (
        [*BUDGET, "quantizer@quantizer.activation=affine_per_channel"],
        "affine_per_tensor",
    ),
}


@pytest.mark.parametrize(("words", "remedy"), REFUSED.values(), ids=REFUSED)
def test_it_says_what_to_do_and_computes_nothing(make, tmp_path, words, remedy):
    with pytest.raises(ValueError, match=remedy) as refusal:
        make(*words)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("outputs/store/*/*"))


def test_images_of_sensitivities_are_not_asked_of_policies_that_read_none(make):
    make("goal=plan", "bitwidth=w4a8", "sensitivity.images=5000")
    make("goal=plan", "bitwidth=random", "bitwidth.saving=20", "sensitivity.images=5000")
