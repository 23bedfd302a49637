"""Bad input gets one clear message, a failing exit, and nothing that was computed is lost."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ptq_diffusion.main import main
from ptq_diffusion.model import UNetDenoiser
from ptq_diffusion.stage import files
from tests.stage.words import quick

TINY = [
    "model=diffusers",
    "sampler.steps=3",
    "images=3",
    "seeds=[0]",
    "micro_batch=2",
    "calibration.images=2",
    "noise.images=2",
    "metric.replicates=2",
    "metric.neighbours=1",
    "runtime.accelerator=cpu",
    "runtime.progress=false",
    "logger=none",
]
ACTIVATION = "quantizer.activation.range_search"
NOWHERE = "/nowhere/at/all"


def started(*words):
    sys.argv = ["ptq-diffusion", *map(str, words)]
    main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_folder):
    """The outputs of a finished job, and the words that it was started with, but for `outputs`."""
    words, outputs = [*TINY, f"model.path={tiny_model_folder()}"], tmp_path_factory.mktemp("finished") / "outputs"
    before = sys.argv
    started(*quick([*words, f"outputs={outputs}"]))
    sys.argv = before
    return words, outputs


@dataclass(frozen=True)
class Place:
    """Where a case may break something."""

    outputs: Path
    scratch: Path
    model: Path
    patch: pytest.MonkeyPatch

    def artefact(self, stage):
        return next(path for path in (self.outputs / "store" / stage).iterdir() if path.is_dir())


@pytest.fixture
def refused(finished, tiny_model_folder, tmp_path, monkeypatch, capfd):
    """From words and a way to break something to the message that the command ends with."""

    def run_one(words, prepare=lambda place: []):
        first, outputs = finished[0], tmp_path / "outputs"
        shutil.copytree(finished[1], outputs)
        model = tmp_path / "model"
        shutil.copytree(tiny_model_folder(), model)
        more = prepare(Place(outputs, tmp_path, model, monkeypatch))
        alone = words[:1] in (["collect"], ["doctor"])
        before = complete(outputs)
        monkeypatch.setattr(sys, "argv", sys.argv)
        with pytest.raises(SystemExit) as stop:
            started(*([*words, *more] if alone else quick([*first, f"outputs={outputs}", *words, *more])))
        monkeypatch.undo()
        assert "Traceback" not in capfd.readouterr().err
        assert complete(outputs).items() >= before.items(), "an artefact is gone or changed"
        return stop.value.code

    return run_one


def complete(outputs):
    """Digests of the files of all artefacts that are complete."""
    folders = [path for path in outputs.glob("store/*/*") if path.is_dir() and path.suffix != ".partial"]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(outputs)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


WORDS = {
    "an option of no group": ("sampler=dimm", "one of ddim, ddpm as sampler.*closest is ddim"),
    "a group that is none": ("samplr=ddim", "closest are sampler,"),
    "an option that is none": ("sampler.stepz=3", "closest are sampler.steps,"),
    "an option of another choice": ("sampler=ddpm sampler.eta=1", "sampler.steps"),
    "an option without its group": ("eta=1", "closest is sampler.eta"),
    "a group without its place": ("quantizer=affine_per_tensor", "quantizer@quantizer.weight=NAME"),
    "an experiment that is none": ("experiment=dem", "closest is demo"),
    "bits without a file": ("bitwidth=w5a5", "w4a4, w4a6"),
    "a metric that is none": ("metric=fid", "cifar10net, fashionnet, pixels"),
    "no value": ("images", "OPTION=VALUE"),
    "an open bracket": ("seeds=[0", "OPTION=VALUE.*quotes"),
    "a list without brackets": ("seeds=0,1", r"seeds=\[0,1\], a sweep takes -m"),
    "a plus before what is there": ("+images=3", "write images=VALUE"),
    "a plus before nothing": ("+nothing=3", "nothing reads"),
    "a plus before a misspelt option": ("+runtime.progres=true", "runtime.progress"),
    "a plus before no option of a sampler": ("+sampler.stepz=3", "DDIM, which has steps, eta, scheduler, got stepz"),
    "a removed option": ("~images", "removes"),
    "a removed group": ("~correction", "removes"),
    "an interpolation to nothing": ("name=${nothing}", "nothing.*ptq-diffusion --help"),
    "an option that has no value": ("model.path=???", "model.path=VALUE"),
    "no name of a group": ("sampler=null", "GROUP=NAME"),
    "two modes": ("-m --run", "Only one"),
    "another primary configuration": ("--config-name=other", "other"),
    "a pickled configuration": ("--experimental-rerun=config.pickle", "pickled"),
    "nothing to collect": (f"collect {NOWHERE}", "report.json"),
    "two folders to examine": ("doctor a b", "at most"),
    "no such goal": ("goal=nothing", "samples_corrected"),
    "a goal without its data": ("goal=reference_statistics", "data=NAME"),
    "images that are a word": ("images=many", "images to be a valid integer, got 'many'"),
    "no images": ("images=0", "images to be greater than 0"),
    "fewer than no images": ("images=-3", "images to be greater than 0"),
    "half an image": ("images=2.5", "images to be a valid integer"),
    "a truth for images": ("images=true", "images to be a valid integer"),
    "nothing for images": ("images=", "images to be a valid integer"),
    "one image in all": ("images=1", "at least 2 images"),
    "a seed that is no list": ("seeds=3", r"seeds=\[0,1,2\]"),
    "no list of seeds": ("seeds=null", r"seeds=\[0,1,2\]"),
    "half a seed": ("seeds=[0.5]", "whole numbers"),
    "a truth for a seed": ("seeds=[true,false]", "whole numbers"),
    "a seed twice": ("seeds=[1,1]", "distinct"),
    "a negative seed": ("seeds=[-1]", "not negative"),
    "no seed": ("seeds=[]", "at least one"),
    "no micro-batch": ("micro_batch=0", "micro_batch to be greater than 0"),
    "no calibration": ("calibration.images=0", "calibration.images to be greater"),
    "no noise": ("noise.images=0", "noise.images to be greater"),
    "a fit on no steps": ("noise.steps=0", "noise.steps to be greater"),
    "a negative noise seed": ("noise.seed=-1", "noise.seed"),
    "neither true nor false": ("force=maybe", "force"),
    "a name with a slash": ("name=../elsewhere", "below outputs/runs"),
    "a name that climbs": ("name=..", "name of a folder"),
    "an accelerator that is none": ("runtime.accelerator=warp", "auto, cpu, gpu"),
    "no steps": ("sampler.steps=0", "at least one step"),
    "fewer than no steps": ("sampler.steps=-1", "at least one step"),
    "half a step": ("sampler.steps=2.5", "steps of DDIM to be a valid integer"),
    "more steps than were trained": ("sampler.steps=2000", "at most 1000"),
    "negative eta": ("sampler.eta=-0.1", r"eta in \[0, 1\]"),
    "eta above 1": ("sampler.eta=1.5", r"eta in \[0, 1\]"),
    "eta that is no number": ("sampler.eta=nan", r"eta in \[0, 1\]"),
    "eta that is a word": ("sampler.eta=much", "eta of DDIM to be a valid number"),
    "an option of no scheduler": ("+sampler.scheduler.nothing=1", "it has beta_end"),
    "a spacing that is none": ("+sampler.scheduler.timestep_spacing=odd", "timestep_spacing"),
    "betas that are none": ("+sampler.scheduler.beta_schedule=odd", "beta_schedule"),
    "betas above 1": ("+sampler.scheduler.beta_end=5", "abar_t"),
    "a prediction that is none": ("+sampler.scheduler.prediction_type=odd", "epsilon, v_prediction or sample"),
    "nine bits": ("bitwidth.inner.weight=9", "2 to 8"),
    "one bit": ("bitwidth.first.activation=1", "2 to 8"),
    "no bits": ("bitwidth.inner.weight=null", "2 to 8"),
    "half a bit": ("bitwidth.inner.weight=3.5", "2 to 8"),
    "bits of something else": ("+bitwidth.inner.bias=8", "activation, weight"),
    "a pattern without a layer": ("bitwidth.patterns=[{name:nowhere,weight:8,activation:8}]", "matches none"),
    "a pattern without bits": ("bitwidth.patterns=[{name:x}]", "activation, name, weight"),
    "a grid for each activation": ("quantizer@quantizer.activation=affine_per_channel", "affine_per_tensor"),
    "bins that are no power of two": ("quantizer.activation.bins=1000", "power of two"),
    "too few bins": ("quantizer.activation.bins=2", "power of two"),
    "too many bins": ("quantizer.activation.bins=1073741824", "power of two"),
    "a percentile below 50": (f"range_search@{ACTIVATION}=percentile {ACTIVATION}.percentile=40", "above 50"),
    "a percentile above 100": (f"range_search@{ACTIVATION}=percentile {ACTIVATION}.percentile=101", "at most 100"),
    "no power": (f"range_search@{ACTIVATION}=lp {ACTIVATION}.p=0", "p > 0"),
    "no candidates": (f"{ACTIVATION}.candidates=0", "candidates >= 1"),
    "a range search that is a number": (
        f"+quantizer.weight.range_search._target_=3 {ACTIVATION}.p=1",
        "already|_target_",
    ),
    "no such term": ("correction.bias=both", "'intercept', 'total' or 'off'"),
    "a term that is a number": ("correction.correlated=2", "correlated of PTQD to be a valid boolean"),
    "a release that needs DDIM": ("sampler=ddpm correction=ptqd_release", "sampler=ddim"),
    "one replicate": ("metric.replicates=1", "at least 2"),
    "replicates that are a word": ("metric.replicates=some", "metric.replicates"),
    "channels of other images": ("metric=pixels metric.extractor.channels=5", "metric.extractor.channels"),
    "no pixels": ("metric=pixels metric.extractor.size=0", "at least 1"),
    "an extractor that is not there": (f"metric.extractor.path={NOWHERE}", "train_feature_network"),
    "a reference that is not there": (f"reference=statistics reference.path={NOWHERE}", "goal=reference_statistics"),
    "a reference of another extractor": ("metric=pixels reference=cifar10", "goal=reference_statistics"),
    "no folder of images": (f"reference=folder reference.path={NOWHERE}", "images"),
    "another logging mode": ("logger=wandb logger.mode=cloud", "'offline' or 'online'"),
    "a class outside": ("sampler._target_=os.system", "_target_"),
    "a class of another library": ("model._target_=transformers.AutoModel.from_pretrained", "_target_"),
    "a class that is none": ("sampler._target_=ptq_diffusion.nothing", "ptq_diffusion.nothing"),
    "a module in place of a class": ("sampler._target_=ptq_diffusion.sampler", "_target_"),
    "a class of another group": ("bitwidth._target_=ptq_diffusion.sampler.DDIM", "options of DDIM"),
    "a model that is not there": (f"model.path={NOWHERE}", "save_pretrained"),
    "data that are not there": (f"experiment=train_denoiser data.folder={NOWHERE}", "data.folder"),
    "a training without data": ("experiment=train_denoiser", "data.folder=VALUE"),
}


@pytest.mark.parametrize(("words", "remedy"), WORDS.values(), ids=WORDS)
def test_words_that_cannot_be_meant(words, remedy, refused):
    assert_clear(refused(words.split(" ")), remedy)


def assert_clear(message, remedy):
    """One line for the user, of what was expected and of what to do; a text ends the process with 1."""
    assert isinstance(message, str), "the command failed in some other way"
    assert message.startswith("error: ")
    assert re.search(remedy, message), message
    assert "\n" not in message
    assert len(message) < 700


def weights(place):
    return place.model / "unet" / "diffusion_pytorch_model.safetensors"


def changed_weights(change):
    def prepare(place):
        tensors = load_file(weights(place))
        change(tensors)
        save_file(tensors, weights(place), {"format": "pt"})
        return [f"model.path={place.model}"]

    return prepare


def changed_json(name, **changes):
    def prepare(place):
        path = place.model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return [f"model.path={place.model}"]

    return prepare


def without(name, *, instead=None):
    def prepare(place):
        (place.model / name).unlink()
        if instead:
            (place.model / instead).write_bytes(b"pickled")
        return [f"model.path={place.model}"]

    return prepare


def overwritten(name, content):
    def prepare(place):
        (place.model / name).write_bytes(content)
        return [f"model.path={place.model}"]

    return prepare


def truncated_weights(place):
    weights(place).write_bytes(weights(place).read_bytes()[:-100])
    return [f"model.path={place.model}"]


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
FILE = "unet/diffusion_pytorch_model.safetensors"
MODELS = {
    "no configuration": (without(UNET), "lacks unet/config.json"),
    "no scheduler": (without(SCHEDULER), "lacks scheduler/scheduler_config.json"),
    "no weights": (without(FILE), r"lacks unet/\*\.safetensors"),
    "pickled weights only": (without(FILE, instead="unet/diffusion_pytorch_model.bin"), "safe_serialization=True"),
    "truncated weights": (truncated_weights, "broken"),
    "weights that are text": (overwritten(FILE, b"version https://git-lfs"), "broken"),
    "a configuration that is no JSON": (overwritten(UNET, b"{"), "expected JSON"),
    "a configuration that is a list": (overwritten(SCHEDULER, b"[]"), "JSON object"),
    "another network": (changed_json(UNET, _class_name="UNet2DConditionModel"), "UNet2DModel"),
    "a layer of another shape": (changed_json(UNET, block_out_channels=[8, 24]), "do not belong together"),
    "a layer less": (changed_json(UNET, layers_per_block=2), "counterpart|do not belong"),
    "a weight less": (changed_weights(lambda tensors: tensors.pop("conv_in.weight")), "conv_in.weight"),
    "a network that cannot be built": (changed_json(UNET, down_block_types=["Odd", "Odd"]), "do not belong together"),
    "NaN in a weight": (changed_weights(lambda t: t["conv_in.weight"].fill_(torch.nan)), "NaN or infinity in conv_in"),
    "class labels": (changed_json(UNET, num_class_embeds=10), "unconditional|counterpart"),
    "no size": (changed_json(UNET, sample_size=None), "sample_size"),
    "a scheduler without betas": (overwritten(SCHEDULER, b'{"_class_name": "Flow"}'), "beta_schedule"),
    "dynamic thresholding": (changed_json(SCHEDULER, thresholding=True), "thresholding"),
}


@pytest.mark.parametrize(("prepare", "remedy"), MODELS.values(), ids=MODELS)
def test_a_model_that_is_broken(prepare, remedy, refused):
    assert_clear(refused([], prepare), remedy)


def pictures(*sizes, mode="RGB"):
    def prepare(place):
        folder = place.scratch / "pictures"
        folder.mkdir()
        for i, size in enumerate(sizes):
            Image.new(mode, size, 3).save(folder / f"{i}.png")
        return [f"reference.path={folder}"]

    return prepare


def a_picture_of_text(place):
    words = pictures((8, 8), (8, 8))(place)
    (place.scratch / "pictures" / "1.png").write_text("none")
    return words


def a_truncated_reference(place):
    path = place.scratch / "reference.safetensors"
    path.write_bytes(b"half")
    return [f"reference.path={path}"]


REFERENCES = {
    "an empty folder": ("reference=folder", pictures(), "found none"),
    "one image": ("reference=folder", pictures((8, 8)), "at least metric.neighbours"),
    "two sizes": ("reference=folder", pictures((8, 8), (9, 8)), "resize"),
    "images too small": ("reference=folder", pictures((4, 4), (4, 4), (4, 4)), "H >= 8"),
    "grey images for a colour extractor": (
        "reference=folder metric=pixels",
        pictures((8, 8), (8, 8), (8, 8), mode="L"),
        "channels",
    ),
    "a text called an image": ("reference=folder", a_picture_of_text, "remove it"),
    "truncated statistics": ("reference=statistics", a_truncated_reference, "goal=reference_statistics"),
}


@pytest.mark.parametrize(("words", "prepare", "remedy"), REFERENCES.values(), ids=REFERENCES)
def test_a_reference_that_is_broken(words, prepare, remedy, refused):
    assert_clear(refused(words.split(" "), prepare), remedy)


def truncated(stage, name):
    def prepare(place):
        path = next(place.artefact(stage).rglob(name))
        path.write_bytes(path.read_bytes()[:-9])
        return ["correction=bias"] if stage != "evaluate" else []

    return prepare


def foreign_owner(place):
    path = place.artefact("calibrate") / "quantizers.safetensors"
    save_file(load_file(path), path, {"owners": json.dumps({"elsewhere/weight": "another"})})
    manifest = path.parent / "files.json"
    sizes = json.loads(manifest.read_text()) | {path.name: path.stat().st_size}
    manifest.write_text(json.dumps(sizes))
    return ["correction=bias"]


def foreign_fingerprint(place):
    path = place.artefact("noise") / "noise.safetensors"
    other = place.scratch / "other"
    started_quietly(place, "goal=noise", "sampler.eta=0.5", f"outputs={other}")
    shutil.copy(next(other.glob("store/noise/*/noise.safetensors")), path)
    return ["correction=bias"]


def started_quietly(place, *words):
    started(*quick([*TINY, f"model.path={place.model}", *words]))


def no_number(place):
    place.patch.setattr(UNetDenoiser, "predict", lambda self, x_t, t: x_t * torch.nan)
    return ["seeds=[7]"]


def failing_save(error):
    def prepare(place):
        def save(*arguments):
            raise error

        place.patch.setattr(files, "save", save)
        return ["seeds=[7]"]

    return prepare


def no_memory(place):
    def predict(self, x_t, t):
        raise torch.OutOfMemoryError("tried to allocate 2 TiB")

    place.patch.setattr(UNetDenoiser, "predict", predict)
    return ["seeds=[7]"]


def read_only(place):
    mkdir = Path.mkdir

    def refuse(self, *arguments, **options):
        if str(self).startswith(str(place.outputs)) and not self.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *arguments, **options)

    place.patch.setattr(Path, "mkdir", refuse)
    return ["seeds=[7]"]


def a_file_for_outputs(place):
    (place.scratch / "file").write_text("")
    return [f"outputs={place.scratch / 'file'}"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_TOO = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
ACCIDENTS = {
    "truncated statistics": (truncated("noise", "noise.safetensors"), "the same command makes it again"),
    "truncated ranges": (truncated("calibrate", "quantizers.safetensors"), "quantizers.safetensors as it was written"),
    "truncated images": (truncated("samples_quantized", "00*.safetensors"), "the same command makes it again"),
    "a truncated evaluation": (truncated("evaluate", "evaluation.json"), "evaluation.json as it was written"),
    "ranges of another network": (foreign_owner, "calibrate again"),
    "statistics of another table": (foreign_fingerprint, "noise statistics of the same"),
    "NaN in the output": (no_number, "not finite"),
    "a full disk": (failing_save(FULL), "make room"),
    "a disk that fills up under safetensors": (failing_save(FULL_TOO), "make room"),
    "a full memory": (no_memory, "lower micro_batch"),
    "outputs that cannot be written": (read_only, "outputs=FOLDER"),
    "outputs that are a file": (a_file_for_outputs, "check the path"),
}


@pytest.mark.parametrize(("prepare", "remedy"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_an_accident_on_the_way(prepare, remedy, refused):
    assert_clear(refused([], prepare), remedy)


def fewer_columns(place):
    return ["data.image_column=label"]


def broken_shard(place):
    for path in (place.scratch / "images").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:200])
    return []


DENOISER, CLASSIFIER = "experiment=train_denoiser", "experiment=train_feature_network"
SMALL = "training.network.sample_size=16"
DATA = {
    "a broken shard": (DENOISER, broken_shard, "fetch the file again"),
    "no such column": (f"{DENOISER} data.image_column=image", None, "data.image_column"),
    "a column of no images": (DENOISER, fewer_columns, "structs that hold bytes"),
    "images of another size": (DENOISER, None, "sample_size"),
    "fewer images than a batch": (f"{DENOISER} {SMALL} training.batch_size=64", None, "lower batch_size"),
    "no labels": (f"{CLASSIFIER} data.label_column=null", None, "set a label column"),
    "more labels than classes": (f"{CLASSIFIER} training.network.num_classes=1", None, "num_classes"),
    "no steps of a training": (f"{DENOISER} training.steps=0", None, "training.steps"),
    "a warm-up that is a word": (f"{DENOISER} training.warmup=long", None, "training.warmup"),
    "an optimizer of another library": (f"{DENOISER} training.optimizer._target_=os.system", None, "_target_"),
}


@pytest.mark.parametrize(("words", "prepare", "remedy"), DATA.values(), ids=DATA)
def test_data_that_cannot_be_trained_on(words, prepare, remedy, refused, images_folder):
    shown = refused([*words.split(" "), f"data.folder={images_folder}"], prepare or (lambda place: []))
    assert_clear(shown, remedy)


def process(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ptq_diffusion", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [["sampler=dimm"], ["images=0"], ["collect", NOWHERE]], ids=" ".join)
def test_a_process_fails_with_one_message_and_no_traceback(words, tmp_path):
    ended = process(*words, *([] if words[0] == "collect" else [f"outputs={tmp_path}"]))
    assert ended.returncode == 1
    assert ended.stderr.count("error: ") == 1
    assert "Traceback" not in ended.stderr + ended.stdout


def test_everything_is_shown_to_those_who_ask(tmp_path):
    ended = process("sampler=dimm", f"outputs={tmp_path}", HYDRA_FULL_ERROR="1")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_a_programming_error_keeps_its_traceback(finished, tmp_path, monkeypatch):
    def predict(self, x_t, t):
        return x_t.nothing_of_the_kind

    monkeypatch.setattr(UNetDenoiser, "predict", predict)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        started(*quick([*finished[0], f"outputs={tmp_path}"]))


def test_an_interruption_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr("ptq_diffusion.stage.experiment.run", interrupted)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as stop:
        started(*quick([*finished[0], f"outputs={tmp_path}"]))
    assert stop.value.code == 130
    assert "goes on" in capsys.readouterr().err


def test_the_environment_is_left_as_it_was(refused, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    refused(["sampler=dimm"])
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_run_shows_its_choices_and_keeps_what_it_said(finished, tmp_path, capsys, monkeypatch):
    words, outputs = finished
    shutil.copytree(outputs, tmp_path / "outputs")
    shutil.rmtree(next((tmp_path / "outputs" / "store").glob("evaluate/????????????????")))
    monkeypatch.setattr(sys, "argv", sys.argv)
    started(*quick([*words, f"outputs={tmp_path / 'outputs'}"]))
    said = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in said if line.strip()}
    assert "steps=3 eta=1.0" in shown["sampler"]
    assert "noise" in shown["in"]
    assert "evaluate" not in shown["in"]
    (log,) = (tmp_path / "outputs" / "runs").glob("*/log.txt")
    kept = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert kept[-1] == said[-1]
    assert set(kept) <= {*said} | {line.split(" ", 1)[1] for line in first_log(outputs)}


def first_log(outputs):
    (log,) = (outputs / "runs").glob("*/log.txt")
    return log.read_text().splitlines()
