"""`import ptq_diffusion as pd`: the same experiments in Python, and Hydra left as it was."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionImg2ImgPipeline, UNet2DModel
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import ptq_diffusion as pd
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.run_name import named
from ptq_diffusion.model.hub import MODELS
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.samples import read_images
from tests.experiments import composed
from tests.model import pipelines

README = Path(__file__).parents[2] / "README.md"
TINY = ("sampler.steps=3", "micro_batch=4", "calibration.images=4", "noise.images=16", "runtime.progress=false")
JUDGED = ("feature=cifar10net", "images=4", "seeds=[5]", "judging.replicates=5", "judging.neighbours=1", "logger=none")


def test_the_import_is_light_and_every_name_is_described():
    heavy = "{'torch', 'hydra', 'diffusers', 'lightning', 'wandb', 'numpy'}"
    subprocess.run(
        [sys.executable, "-c", f"import sys, ptq_diffusion; assert not {heavy} & set(sys.modules), sys.modules"],
        check=True,
    )
    assert all(getattr(pd, name).__doc__ for name in pd.__all__)
    assert set(pd.__all__) <= set(dir(pd))
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = pd.quantise


@pytest.mark.parametrize(
    "words",
    [(), ("experiment=demo", "bitwidth=w4a4", "sampler.eta=0"), ("model=fashion_ddpm", "data=folder", "~metric.kid")],
    ids=["default", "demo", "groups"],
)
def test_a_composition_is_that_of_the_command(words):
    ours, theirs = pd.compose(*words), named(composed(*words))
    plain = [OmegaConf.to_container(cfg, resolve="data=folder" not in words) for cfg in (ours, theirs)]
    if "data=folder" in words:  # has an option without a value, so nothing is resolved
        assert plain[0].pop("labels") == OmegaConf.to_container(theirs.labels, resolve=True)
        plain[1].pop("labels")
    assert plain[0] == plain[1]


def test_hydra_is_as_it_was_before(tmp_path):
    (tmp_path / "mine.yaml").write_text("x: 1\n")
    assert not GlobalHydra().is_initialized()
    pd.compose()
    assert not GlobalHydra().is_initialized()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        mine = GlobalHydra.instance()
        pd.compose("bitwidth=w8a8")
        with pytest.raises(ValueError, match="closest are correction"):
            pd.compose("corection=none")
        assert GlobalHydra.instance() is mine
        assert hydra.version.getbase().minor == 2
        assert hydra.compose("mine") == {"x": 1}


def test_a_report_has_what_its_files_hold(tiny_model_folder, tmp_path):
    words = ("model=diffusers", f"model.path={tiny_model_folder()}", f"outputs={tmp_path}", *TINY, *JUDGED)
    report = pd.run(pd.compose("correction=ptqd", *words))
    content = json.loads(report.paths["report"].read_text())
    assert (report.rows, report.paired) == (content["rows"], content["paired"])
    assert [row["variant"] for row in report.rows] == list(report.images)
    assert {tuple(images.shape) for images in report.images.values()} == {(4, 3, 8, 8)}
    assert torch.equal(report.images["corrected"], read_images(report.artefacts["samples_corrected"]))
    assert set(report.figures) >= {"images", "noise"}
    assert all(path.is_file() for path in (*report.paths.values(), *report.figures.values()))
    assert report._repr_html_().count("<tr>") == 4
    with pytest.raises(ValueError, match=r"pd\.make\(cfg\)"):
        pd.run(pd.compose("goal=fit"))


def test_the_readme_quantizes_and_corrects_a_pipeline(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(import ptq_diffusion.*?)```", README.read_text(), re.DOTALL)[1]
    code = code.replace("FOLDER", str(tiny_model_folder())).replace("=20", "=3")
    names: dict[str, object] = {}
    exec(code, names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 8

    pipe, (model,) = names["pipeline"], (tmp_path / "outputs" / "models").iterdir()
    pipe.set_progress_bar_config(disable=True)
    streams = [generator("images", 5, index) for index in range(4)]
    images = to_bytes(pipe(4, generator=streams, num_inference_steps=3, output_type="pt").images)
    same = ("model=diffusers", f"model.path={model.relative_to(tmp_path)}", "correction=rescaled_matched")
    drawn = pd.make(pd.compose(*same, "sampler.steps=3", *JUDGED, "goal=samples_corrected"))
    assert torch.equal(images, read_images(drawn))

    (export,) = (tmp_path / "outputs" / "store" / "export").glob("*/")
    assert pd.load_quantized(export).shape == (3, 8, 8)
    assert len(pd.load_correction(export).steps) == 3


def test_a_pipeline_stays_as_it_is_and_is_quantized_once_a_seed(tiny_model_folder, tmp_path, caplog):
    """diffusers does not wonder at the network that is to be in it, and goes on to wonder at any other."""
    original = DDPMPipeline.from_pretrained(tiny_model_folder())
    before = {name: tensor.clone() for name, tensor in original.unet.state_dict().items()}
    words = ("micro_batch=4", "runtime.progress=false", f"outputs={tmp_path}")
    for seed in (0, 0, 1):
        pd.quantize(original, *words, correction="none", steps=2, calibration_images=4, fit_images=4, seed=seed)
    assert type(original.unet) is UNet2DModel
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.unet.state_dict().items())
    assert len(list((tmp_path / "models").iterdir())) == 1
    exports = list((tmp_path / "store" / "export").glob("*/"))
    assert len(exports) == 2
    assert "Expected types" not in caplog.text
    DDPMPipeline.from_pretrained(exports[0])
    assert "Expected types for unet" in caplog.text


def test_a_pipeline_in_half_precision_is_computed_so(tiny_model_folder, tmp_path):
    original = DDPMPipeline.from_pretrained(tiny_model_folder()).to(torch.bfloat16)
    words = ("micro_batch=4", "runtime.progress=false", f"outputs={tmp_path}")
    ours = pd.quantize(original, *words, correction="none", steps=2, calibration_images=4, fit_images=4)
    ours.set_progress_bar_config(disable=True)
    assert ours(2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 3)
    (export,) = (tmp_path / "store" / "export").glob("*/")
    assert pd.load_quantized(export).dtype is torch.bfloat16


def test_the_defaults_of_quantize_are_those_of_the_command_but_for_auto():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(pd.quantize).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    cfg = pd.compose()
    assert defaults.pop("correction") in {path.stem for path in (CONF / "correction").glob("*.yaml")}
    assert defaults == {
        "bitwidth": cfg.labels.bitwidth,
        "sampler": cfg.labels.sampler,
        "steps": cfg.sampler.steps,
        "calibration_images": cfg.calibration.images,
        "fit_images": cfg.noise.images,
        "seed": 0,
    }


def test_a_folder_that_holds_none_is_refused():
    folder = MODELS.path("bundled:cifar10_ddpm")
    for load in (pd.load_quantized, pd.load_correction):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            load(folder)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pd.compose(3), "expected words as on the command line, .*, got 3"),
        (lambda: pd.run({"goal": "report"}), "expected a configuration, got dict; make it with pd.compose"),
        (lambda: pd.make(None), "expected a configuration, got NoneType"),
        (lambda: pd.load_correction(None), "expected the path of a folder, .*, got None"),
        (lambda: pd.load_quantized(3), "expected the path of a folder, .*, got 3"),
        (
            lambda: pd.load_quantized(".", plugins="json"),
            r"a list of names as plugins, got .*'json'; .*\['json'\]",
        ),
    ],
)
def test_arguments_of_another_type_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_grid_and_words_of_the_command_line_alone_are_refused_with_what_to_give():
    with pytest.raises(ValueError, match="got experiment=eta, a grid; add .*, 'sampler.eta=VALUE', .* for one cell"):
        pd.compose("experiment=eta")
    cell = ("bitwidth=w4a8", "sampler.eta=1", "correction=ptqd")
    assert pd.compose("experiment=league", *cell).correction == pd.compose(*cell).correction
    for word in ("-m", "--config-dir=conf"):
        with pytest.raises(ValueError, match=rf"got '{word}', which the .*'hydra\.searchpath=\[DIR\]', a sweep is a l"):
            pd.compose(word)
    with pytest.raises(ValueError, match=r"bitwidth=\[w4a4,w4a8\], several values are composed one after the other"):
        pd.compose("bitwidth=w4a4,w4a8")
    with pytest.raises(
        ValueError, match=r"^expected one value, got those of seeds=range\(0,3\); several values are comp"
    ):
        pd.compose("seeds=range(0,3)")


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("correction={a:1}", "it is a group, one of whose files is chosen by its name: correction=NAME$"),
        ("quantizer=tensor", "the group has 3 places: quantizer@quantizer.softmax=NAME, [^ ]+, [^ ]+$"),
    ],
)
def test_a_group_that_is_given_otherwise_is_answered_by_how_it_is_given(word, remedy):
    with pytest.raises(ValueError, match=remedy):
        pd.compose(word)


@pytest.mark.parametrize(("word", "got"), [("model=null", "null"), ("bitwidth=4", "a value of type int")])
def test_a_group_without_a_name_is_refused_as_on_the_command_line(word, got):
    with pytest.raises(ValueError, match=f"^expected GROUP=NAME with the name of a file of that group, got {got}; "):
        pd.compose(word)


@pytest.mark.parametrize(
    ("part", "value", "remedy"),
    [
        ("bitwidth", "w4a4", r"choose one of its files .* pd\.compose\('bitwidth=NAME'\)"),
        ("feature", "pixels", r".* pd\.compose\('feature=NAME'\)"),
        ("calibration", 64, "set calibration.images or calibration.seed$"),
        ("step_signal", True, "set step_signal.shown$"),
    ],
)
def test_a_value_in_the_place_of_a_part_is_refused_with_what_to_set(part, value, remedy):
    cfg = pd.compose()
    cfg[part] = value
    with pytest.raises(ValueError, match=f"expected {part} to be a part with options .*, got {value!r}; {remedy}"):
        pd.run(cfg)


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_that_is_not_exported_is_refused_before_it_is_written(tmp_path):
    parts = pipelines.stable_diffusion(tmp_path / "model").components
    pipeline = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(ValueError, match=r"got a StableDiffusionImg2ImgPipeline; .*StableDiffusionPipeline\.from_pipe"):
        pd.quantize(pipeline, f"outputs={tmp_path}/outputs")
    assert not (tmp_path / "outputs").exists()


def test_what_is_no_pipeline_is_refused_with_how_to_load_one(tiny_model_folder):
    with pytest.raises(TypeError, match=r"pipeline of diffusers, got '.*' of str; give that of DiffusionPipeline.from"):
        pd.quantize(str(tiny_model_folder()))
    pipeline = DDPMPipeline.from_pretrained(tiny_model_folder())
    with pytest.raises(TypeError, match="expected words as on the command line, .*, got 3"):
        pd.quantize(pipeline, 3)
    for word, message in (
        ("model=cifar10_ldm", "beside those of the pipeline .* got 'model=cifar10_ldm'; leave it out"),
        ("model.path=FOLDER", "beside those of the pipeline"),
        ("goal=fit", "beside those of the pipeline and of goal=export"),
        ("bitwidth=w8a8", "expected the argument bitwidth of quantize, got 'bitwidth=w8a8'"),
        ("noise.images=16", "expected the argument fit_images"),
        ("calibration=foo", "got 'foo'; set calibration.images or calibration.seed"),
    ):
        with pytest.raises(ValueError, match=message):
            pd.quantize(pipeline, word)
    for numbers, kind in (({"seed": -1}, ValueError), ({"steps": 0}, ValueError), ({"fit_images": None}, TypeError)):
        with pytest.raises(kind, match=f"expected .*{next(iter(numbers))}"):
            pd.quantize(pipeline, **numbers)
