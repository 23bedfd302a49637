"""What `ptq-diffusion plan` says is what a run then does: passes of the networks, bytes, without any weights."""

import csv
import shutil
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.command.plan.activations import LiveBytes, forward_bytes
from ptq_diffusion.command.plan.bytes import ENTRY
from ptq_diffusion.command.plan.command_line import print_plan
from ptq_diffusion.command.plan.memory import COPIES, FLOAT
from ptq_diffusion.main import main
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.decoder import load_decoder, outlined_decoder
from ptq_diffusion.model.hub import MODELS
from ptq_diffusion.model.text.files import text_block, text_sizes
from ptq_diffusion.network import QuantizedLayer
from ptq_diffusion.network.embedding import embeddings
from tests.own_package import WORDS

BUNDLED = sorted(folder.parent.name for folder in MODELS.home.glob("*/model_index.json"))
LABELS = ["condition=labels", "condition.source.no_class=3", "condition.guidance.scale=2"]
PATH = ["correction=rescaled_matched", "correction.links.rescaled.images=9", "correction.links.matched.images=13"]
POOLED = ["correction=rescaled", "correction.path=float", "correction.images=9", "gain_steps@correction.steps=pooled"]
ONE_CHOICE = [
    f"~correction.candidates.{name}"
    for name in ("ptqd_gated", "readout_matched", "rescaled_guided_matched", "rescaled_readout_matched")
]
EXPERIMENTS = {
    "moments, and layers in the report": ["correction=ptqd", "images=3", "layers.images=2"],
    "a step asked twice": ["correction=qncd", "correction.every=2", "goal=samples_corrected"],
    "a path": [*PATH, "noise.images=17", "noise.steps=4", "goal=fit"],
    "a path known ahead": [*POOLED, "noise.images=17", "noise.steps=4", "goal=fit"],
    "labels and guidance": [*LABELS, "correction=tac", "condition.guidance.interval=[0,0.5]"],
    "a choice": ["correction=auto", *ONE_CHOICE, "goal=fit", "trial.images=5", "correction.judge.replicates=5"]
    + ["noise.images=16"],
    "features": ["calibration_set=density", "calibration_set.images=6", "calibration.images=7"]
    + ["goal=calibration_set"],
    "bits by step": ["bitwidth=step_snr", "goal=plan"],
    "learned scales": ["activation_scales=lsq", "activation_scales.iterations=1", "goal=quantize", "images=1"],
    "learned scales under guidance": [*LABELS, "activation_scales=lsq", "activation_scales.iterations=1"]
    + ["goal=activation_scales"],
    "bits by layer": ["bitwidth=budget", "bitwidth.saving=12", "sensitivity.images=5", "goal=plan"],
}

EXACT = {"trajectories", "float_path", "samples_quantized"}
"""Stages whose tensors are planned to the byte, and"""
ABOUT = {"calibrate", "quantize", "noise", "layers"}
"""those whose files are, headers included, of about the size that is planned."""


def planned(capsys, *words):
    """The numbers of a plan, by subject and quantity."""
    capsys.readouterr()
    print_plan([*words, "--csv"])
    rows = csv.DictReader(capsys.readouterr().out.splitlines())
    return {(row["subject"], row["quantity"]): float(row["value"]) for row in rows}


@pytest.fixture
def counted(monkeypatch):
    """The rows that networks are asked about, by stage and kind of network."""
    rows, stages, predict = Counter(), [], DiffusersDenoiser.predict

    def counting(self, x_t, step, condition=None):
        if x_t.is_meta:  # A plan's outline, which computes nothing.
            return predict(self, x_t, step, condition)
        quantized = any(isinstance(module, QuantizedLayer) for module in self.network.modules())
        gradients = torch.is_grad_enabled() and x_t.requires_grad
        rows[stages[-1], "quantized_passes" if quantized else "float_passes"] += len(x_t)
        rows[stages[-1], "backward_passes"] += len(x_t) * gradients
        return predict(self, x_t, step, condition)

    def within(make, name):
        def run(*arguments):
            stages.append(name)
            try:
                return make(*arguments)
            finally:
                stages.pop()

        return run

    monkeypatch.setattr(DiffusersDenoiser, "predict", counting)
    for stage in STAGES.values():
        monkeypatch.setattr(stage, "make", within(stage.make, stage.name))
    return rows


@pytest.mark.parametrize("words", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_run_asks_the_networks_and_leaves_bytes_as_planned(words, tiny, make, counted, capsys, tiny_model_folder):
    classes = [f"model.path={tiny_model_folder(classes=4)}"] if LABELS[0] in words else []
    words = [*words, "sampler.steps=2"]
    plan = planned(capsys, *tiny, *words, *classes)
    expected = Counter()
    for (subject, quantity), number in plan.items():
        if quantity in ("float_passes", "quantized_passes", "backward_passes"):
            expected[subject.partition(":")[0], quantity] += number
    store = next(folder for folder in make(*words, *classes).parents if (folder / "store").is_dir()) / "store"
    assert +counted == +expected
    assert sum(counted.values()) > 0
    for stage in (EXACT | ABOUT) & {folder.name for folder in store.iterdir()}:
        files = list((store / stage).rglob("*.safetensors"))
        tensors = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
        sizes = sum(file.stat().st_size for file in [*files, *(store / stage).rglob("sites.json")])
        assert plan[stage, "kept"] == (tensors if stage in EXACT else pytest.approx(sizes, rel=0.2)), stage


@pytest.mark.parametrize(
    ("classes", "rule"),
    [(None, "mid_range"), (4, "mid_range"), (None, "dither")],
    ids=["time alone", "time and class", "borders too"],
)
def test_the_bytes_of_shifts_are_those_of_the_layers_that_are_shifted(
    tiny, make, capsys, tiny_model_folder, classes, rule
):
    """Inputs that differ from image to image: an embedding of the time and the class, not of time."""
    words = ["correction=rescaled", "correction.images=9", "noise.images=17", "goal=fit"]
    words += [] if classes is None else [*LABELS[:2], f"model.path={tiny_model_folder(classes=classes)}"]
    shifted = [*words, f"shift@correction.shift={rule}"]
    plain, more = (planned(capsys, *tiny, *each)["fit", "kept"] for each in (words, shifted))
    stored = Counter()
    for name, tensor in load_file(make(*shifted) / "correction.safetensors").items():
        if name.endswith("/shift"):
            stored[name.partition("/")[0]] += tensor.nbytes + ENTRY
    assert stored and more - plain == max(stored.values()) * 3


def test_a_folder_without_weights_has_the_plan_of_one_with_them(tiny, capsys, tmp_path, tiny_model_folder):
    """A model file that leaves the dtype to the class has the same plan, too."""
    bare = shutil.copytree(tiny_model_folder(), tmp_path / "bare")
    for weights in bare.rglob("*.safetensors"):
        weights.unlink()
    memory = {("experiment", "memory")}
    cases = ([f"model.path={bare}", "~model.dtype"], [f"model.path={tiny_model_folder()}"])
    plans = [planned(capsys, *tiny, "correction=ptqd", *words) for words in cases]
    first, second = ({key: value for key, value in plan.items() if key not in memory} for plan in plans)
    assert first == second
    # Blocks that are lent take memory one at a time, and nothing else.
    lent = planned(capsys, *tiny, "correction=ptqd", "runtime.offload=block")
    changed = {key for key in first if lent[key] != first[key]}
    assert changed and all(key[1].endswith("memory") and lent[key] < first[key] for key in changed)


def test_tables_of_embeddings_in_integers_are_counted_at_their_bits(tiny, capsys, tiny_model_folder):
    """In files, and in memory beside the copies that they are unpacked to; full precision has them in float."""
    words = [*tiny, "correction=ptqd", "condition=labels", f"model.path={tiny_model_folder(classes=4)}"]
    plain, integers = (planned(capsys, *words, *more) for more in ([], ["embedding@quantizer.embedding=integers"]))
    (table,) = embeddings(DiffusersDenoiser.from_folder(str(tiny_model_folder(classes=4))).network).values()
    numbers = table.weight.numel()
    assert plain["w4a8", "weight_bytes"] - integers["w4a8", "weight_bytes"] == numbers * (32 - 4) // 8
    assert plain["full precision", "weight_bytes"] == integers["full precision", "weight_bytes"]
    more = integers["samples_quantized", "memory"] - plain["samples_quantized", "memory"]
    assert more == numbers * (4 / 8 + COPIES * FLOAT - FLOAT)


def test_networks_that_are_lent_share_the_room_of_a_block_unless_they_are_asked_outside_of_it(tiny, capsys):
    """Offers of bits by step are measured one after the other, so that another of them takes no more."""
    offers = [f"{{weight:{bits},activation:8}}" for bits in (4, 6, 8)]

    def device_memory(count, *words):
        offered = f"bitwidth.offered=[{','.join(offers[-count:])}]"
        words = [*tiny, "goal=step_signal", "bitwidth=step_snr", offered, *words]
        return planned(capsys, *words)["experiment", "device_memory"]

    lent, whole = ([device_memory(count, *words) for count in (2, 3)] for words in (["runtime.offload=block"], []))
    assert 0 < lent[0] == lent[1] < whole[0] == whole[1]
    layers = [*tiny, "goal=layers", "layers.images=2", "correction=ptqd"]
    budget = [*tiny, "goal=changes", "bitwidth=budget", "bitwidth.saving=12", "sensitivity.images=2"]
    for stage, words in (("layers", layers), ("changes", budget)):
        lent, whole = (planned(capsys, *words, *more)[stage, "memory"] for more in (["runtime.offload=block"], []))
        assert lent == whole if stage == "changes" else lent < whole


def test_encoders_of_prompts_take_the_memory_of_their_files_or_of_a_block_of_them(tiny, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat")
    path, prompts = "bundled:emoji_sd", ["condition=prompts", f"condition.source.path={tmp_path / 'prompts.txt'}"]
    words = [*tiny, "goal=prompts", f"model.path={path}", *prompts]
    whole, lent = (planned(capsys, *words, *more)["prompts", "memory"] for more in ([], ["runtime.offload=block"]))
    sizes, blocks = text_sizes(path), Counter()
    for name, size in sizes.items():
        blocks[text_block(name)] += size
    outside = blocks.pop(None)
    assert whole - lent == sum(sizes.values()) - outside - max(blocks.values()) > 0


def test_a_network_of_the_users_own_is_planned_from_a_folder_of_configurations(tiny, own_package, capsys):
    """Of passes as many as of a folder's network; a measurement asks it too."""
    rest = [word for word in tiny if not word.startswith("model")]
    own = [f"--config-dir={own_package / 'conf'}", *WORDS, f"model.path={own_package / 'weights.safetensors'}"]
    plan = planned(capsys, *rest, "correction=ptqd", *own, "--measure")
    other = planned(capsys, *tiny, "correction=ptqd")
    passes = [key for key in other if key[1].endswith("passes")]
    assert [plan[key] for key in passes] == [other[key] for key in passes]
    assert plan["experiment", "seconds"] > 0 < plan["samples_quantized", "memory"]


@pytest.mark.parametrize("name", BUNDLED)
def test_an_outline_is_the_architecture_of_what_is_loaded(name):
    path = f"bundled:{name}"
    outline, loaded = DiffusersDenoiser.outline(path), DiffusersDenoiser.from_folder(path)
    assert outline.architecture() == loaded.architecture()
    assert (outline.shape, outline.needs, outline.classes) == (loaded.shape, loaded.needs, loaded.classes)
    assert outline.scheduler_config == loaded.scheduler_config
    assert outlined_decoder(path).shape(outline.shape) == load_decoder(path).shape(loaded.shape)


def test_times_follow_the_passes_and_the_speed(tiny, capsys):
    """Twice the speed is half the time, twice the images of a stage are twice its time."""
    first, faster, more = (
        planned(capsys, *tiny, "correction=ptqd", *words)
        for words in (["--speed=1e9"], ["--speed=2e9"], ["--speed=1e9", "images=8"])
    )
    one = first["network", "macs"] / 1e9
    assert first["noise", "seconds"] == pytest.approx(one * first["noise", "quantized_passes"], rel=1e-5)
    times = {key for key in first if key[1] == "seconds"}
    assert all(first[key] == pytest.approx(2 * faster[key], rel=1e-5) for key in times)
    assert first["experiment", "seconds"] == pytest.approx(sum(first[key] for key in times) / 2, rel=1e-4)
    assert more["samples_quantized", "seconds"] == pytest.approx(2 * first["samples_quantized", "seconds"] * 8 / 16)


@pytest.mark.parametrize("words", [[], ["bitwidth=share", "condition=labels"]], ids=" ".join)
def test_measured_times_are_told_of_every_stage_that_asks_a_network(words, tiny, capsys, tiny_model_folder):
    classes = [f"model.path={tiny_model_folder(classes=4)}"] if words else []
    plan = planned(capsys, *tiny, "correction=ptqd", *words, *classes, "--measure")
    asking = {subject for (subject, quantity), number in plan.items() if quantity.endswith("_passes") and number}
    assert {subject for (subject, quantity), number in plan.items() if quantity == "seconds" and number} == asking | {
        "experiment"
    }


def test_a_stage_of_which_nothing_is_told_is_named(capsys):
    print_plan(["rounding=gptq"])
    assert "reconstruct, of which nothing is told" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["model=emoji_sd", "--speed=1e12"], ["bitwidth=budget"]], ids=" ".join)
def test_a_plan_fits_a_screen(words, capsys):
    print_plan(words)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines), "nothing is cut off"


def test_tensors_are_followed_until_they_are_freed():
    with torch.no_grad(), LiveBytes() as live:
        first = torch.zeros(1000, device="meta")
        second = first + 1
        del first
        third = second.view(10, 100) * 2
        del second
        third.add_(1)
    assert live.most == 2 * 4 * 1000


def test_activations_grow_with_the_rows_and_with_what_gradients_keep():
    model = DiffusersDenoiser.outline("bundled:cifar10_ddpm")
    one, four = (forward_bytes(model, rows) for rows in (1, 4))
    assert 3.5 < four / one < 4.0 + 1e-9
    assert one < forward_bytes(model, 1, quantized=True) < forward_bytes(model, 1, gradients=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measured"], "--measured"),
        (["--speed=inf"], "expected a finite --speed"),
        (["reference=folder", "reference.path=/nope"], "/nope"),
        (["condition=labels"], "condition=none"),
    ],
)
def test_words_that_a_run_or_a_plan_cannot_take_are_refused(words, message, tiny, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ptq-diffusion", "plan", *tiny, "correction=ptqd", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert message in str(stop.value.code)
