"""The main job: what a run leaves, what it shares with the next, and that nothing but its inputs changes it."""

import csv
import json
import re
import shutil
from datetime import datetime

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.command.experiment import forced_stages
from ptq_diffusion.metric import protocol_id
from ptq_diffusion.report.stages import goal_stages
from ptq_diffusion.report.sweep.collect import collect
from ptq_diffusion.stage import samples
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.samples import read_images
from tests.experiments import composed

METRICS = {
    "fid",
    "sfid",
    "kid",
    "classifier_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "fid_to_fp",
    "kid_to_fp",
    "feature_distance_to_fp",
    "psnr_to_fp",
    "ssim_to_fp",
}
ROW = METRICS | {f"{metric}_se" for metric in METRICS}
ROW |= {"variant", "correction", "weight_bits", "activation_bits", "bops_per_image", "bops_saving", "weight_bytes"}
ROW |= {"mean_weight_bits", "mean_activation_bits", "attention_share", "images", "seeds"}


def artefacts(folder):
    """Every artefact of the store, with when its folder last changed."""
    store = folder.parents[1] / "store"
    return {path: path.stat().st_mtime_ns for path in store.glob("*/*") if path.is_dir()}


def images_of(report, folder, stage):
    return read_images(folder.parents[1] / "store" / stage / report["signatures"][stage])


@pytest.fixture
def shared(report, outputs):
    """As `report`, in a folder that the tests of this file share."""
    return lambda *words: report(*words, f"outputs={outputs}")


@pytest.fixture
def with_artefacts(report, outputs, tmp_path):
    """As `report`, beside copies of the artefacts that there are, and no other runs."""
    if outputs.exists():
        shutil.copytree(outputs / "store", tmp_path / "outputs" / "store")
    return report


@pytest.mark.figures
def test_a_report_holds_what_it_promises(shared):
    found, folder = shared()
    assert [row["variant"] for row in found["rows"]] == ["full_precision", "quantized", "corrected"]
    assert all(set(row) == ROW for row in found["rows"])
    assert {(pair["a"], pair["b"]) for pair in found["paired"]} >= {
        ("full_precision", "quantized"),
        ("full_precision", "corrected"),
        ("quantized", "corrected"),
    }
    assert all(pair["low"] <= pair["difference"] <= pair["high"] for pair in found["paired"])
    assert {pair["metric"] for pair in found["paired"]} == METRICS
    assert all(row[f"{metric}_se"] >= 0 for row in found["rows"][1:] for metric in METRICS)
    assert {name for name, value in found["rows"][0].items() if value is None} == {
        "psnr_to_fp",
        "psnr_to_fp_se",
        "ssim_to_fp",
        "ssim_to_fp_se",
    }
    theirs = [found["torchmetrics"][f"{row['variant']}/fid"] for row in found["rows"]]
    assert theirs == pytest.approx([row["fid"] for row in found["rows"]], rel=1e-3, abs=0.01)
    assert all((folder / figure).stat().st_size > 10_000 for figure in found["figures"])
    assert found["figures"] == ["images.png", "noise.png", "drift.png", "plan.png"]
    with (folder / "table.csv").open() as file:
        assert [row["fid"] for row in csv.DictReader(file)] == [str(row["fid"]) for row in found["rows"]]


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if ": making" in line]


def test_a_report_says_where_its_numbers_come_from(make, capsys):
    path = make("correction=ptqd", "sampler.eta=0.5")
    origin = json.loads(path.read_text())["provenance"]
    assert "sampler.eta=0.5" in origin["overrides"]
    assert (
        datetime.fromisoformat(origin["date"]).tzinfo and origin["host"] and origin["device_name"] and origin["command"]
    )
    assert origin["versions"]["torch"] == torch.__version__ and origin["device"] == "cpu"
    said = [re.fullmatch(r"(\d+) of (\d+) (?:\(about .* left\) )?(\w+): making \w{16}", line) for line in lines(capsys)]
    count = str(len(origin["seconds"]))
    assert [match.group(1, 2) for match in said] == [(str(place), count) for place in range(1, int(count) + 1)]
    assert set(origin["seconds"]) == {match[3] for match in said} and min(origin["seconds"].values()) >= 0
    again = json.loads(make("correction=ptqd", "sampler.eta=0.5").read_text())["provenance"]
    assert again["seconds"] == origin["seconds"], "what was reused took as long as when it was made"


def test_the_same_command_recomputes_nothing(shared, capsys):
    first, folder = shared()
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith(f"{folder.name}/report.json")
    for stage, signature in first["signatures"].items():
        assert (folder.parents[1] / "store" / stage / signature / "config.yaml").is_file()
    before = artefacts(folder)
    second, again = shared()
    assert (second, again) == (first, folder)
    assert artefacts(folder) == before


FORCED = {
    "true": {"trajectories", "calibration_set", "calibrate", "plan", "quantize", "float_path", "noise", "fit"}
    | {"drift", "evaluate"}
    | {stage.name for stage in VARIANTS.values()},
    "evaluate": {"evaluate"},
    "noise": {"noise", "fit", "samples_corrected", "drift", "evaluate"},
}


def test_force_makes_again_what_it_names_and_ends_with_the_same_numbers(shared):
    first, folder = shared()
    for force, expected in FORCED.items():
        before = artefacts(folder)
        second, _ = shared(f"force={force}")
        assert second == first
        now = artefacts(folder)
        assert set(now) == set(before)
        assert {path.parent.name for path, when in now.items() if before[path] != when} == expected


def test_force_names_what_the_goal_is_made_of(report):
    with pytest.raises(
        ValueError,
        match=r"force to be false, true or one of activation_scales, additions, .*outside_plan, .*got 'train_denoiser'",
    ):
        report("force=train_denoiser")


def test_force_makes_layers_again_where_the_report_has_them(tiny):
    """They are no need of the evaluation, beside which a report shows them."""
    forced = {}
    for images in (0, 2):
        goals = goal_stages(composed(*tiny, f"layers.images={images}"), Evaluate)
        forced[images] = forced_stages(True, goals)
    assert forced[2] - forced[0] == {"layers"} == forced_stages("layers", goals)
    with pytest.raises(ValueError, match="force='layers'.* set layers.images=8"):
        forced_stages("layers", goals[:1])


def test_a_sweep_over_corrections_calibrates_once(shared):
    first, folder = shared("correction=ptqd")
    before = set(artefacts(folder))
    second, _ = shared("correction=ptqd_release")
    made = {path.parent.name for path in set(artefacts(folder)) - before}
    assert made == {"fit", "samples_corrected", "drift", "evaluate"}
    assert second["rows"][:2] == first["rows"][:2]


def test_no_correction_draws_the_images_of_the_quantized_model(shared):
    found, folder = shared("correction=none", "bitwidth=w4a4")
    corrected = images_of(found, folder, "samples_corrected")
    assert torch.equal(corrected, images_of(found, folder, "samples_quantized"))
    assert not torch.equal(corrected, images_of(found, folder, "samples_full_precision"))


def test_float_bits_change_nothing(shared):
    found, folder = shared("bitwidth=float")
    full_precision = images_of(found, folder, "samples_full_precision")
    for stage in ("samples_quantized", "samples_corrected"):
        assert torch.equal(full_precision, images_of(found, folder, stage))
    assert {row["bops_saving"] for row in found["rows"][:2]} == {1.0}
    assert 0.99 < found["rows"][2]["bops_saving"] < 1, "the correction's own operations count"


def test_eight_bits_stay_closer_to_float_than_four(shared):
    rows = {bits: shared(f"bitwidth={bits}", "correction=none")[0]["rows"] for bits in ("w8a8", "w4a4")}
    psnr = {bits: rows[bits][1]["psnr_to_fp"] for bits in rows}
    assert psnr["w8a8"] > psnr["w4a4"]


def test_an_image_depends_on_its_seed_and_place_alone(make, outputs):
    for stage in ("samples_full_precision", "samples_corrected"):
        few, many = (
            read_images(make(f"goal={stage}", *words, f"outputs={outputs}"))
            for words in (["images=3", "seeds=[1]"], ["images=7", "seeds=[2,1]"])
        )
        assert torch.equal(few, many[:3])


def test_an_interrupted_run_goes_on_and_ends_bit_identical(report, shared, outputs, monkeypatch, tmp_path):
    whole, folder = shared()
    expected = {stage: images_of(whole, folder, stage) for stage in ("samples_quantized", "samples_corrected")}
    results = shutil.ignore_patterns("samples_*", "drift", "evaluate")
    shutil.copytree(outputs / "store", tmp_path / "outputs" / "store", ignore=results)
    done = []
    forward = samples.DrawImages.forward

    def killed_at_the_seventh_chunk(self, chunk, device):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(chunk)
        return forward(self, chunk, device)

    monkeypatch.setattr(samples.DrawImages, "forward", killed_at_the_seventh_chunk)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        report()
    monkeypatch.setattr(samples.DrawImages, "forward", lambda *args: done.append(args[1]) or forward(*args))
    again, folder = report()
    assert again == whole
    assert len(done) == 12, "a chunk that was finished before the interruption was drawn again"
    for stage, images in expected.items():
        assert torch.equal(images, images_of(again, folder, stage))


@pytest.mark.figures
@pytest.mark.parametrize(
    ("prediction_type", "channels", "size", "feature"),
    [
        ("epsilon", 1, (8, 8), ["feature=cifar10net"]),
        ("v_prediction", 3, (16, 12), ["feature=cifar10net"]),
        ("sample", 2, (8, 8), ["feature=pixels", "feature.extractor.channels=2"]),
    ],
)
def test_any_unconditional_model_runs(report, tiny_model_folder, prediction_type, channels, size, feature):
    folder = tiny_model_folder(prediction_type=prediction_type, channels=channels, size=size)
    found, run = report(f"model.path={folder}", "sampler=ddpm", "sampler.steps=2", *feature)
    assert images_of(found, run, "samples_corrected").shape == (10, channels, *size)
    assert [row["fid"] == row["fid_to_fp"] for row in found["rows"]] == [True] * 3, "no reference but the float samples"
    assert [row["kid"] == row["kid_to_fp"] for row in found["rows"]] == [True] * 3
    known = {metric for metric in METRICS if found["rows"][2][metric] is not None}
    lacking = {"sfid", "classifier_score"} if channels == 2 else set()
    assert known == METRICS - lacking
    assert found["rows"][0]["precision"] == found["rows"][0]["recall"] < 1, "as other samples of the float model have"


def test_a_metric_that_is_left_out_has_no_column_and_the_others_keep_their_numbers(with_artefacts):
    whole, _ = with_artefacts()
    part, folder = with_artefacts("~metric.kid", "~metric.psnr_to_fp")
    left_out = {f"{name}{ending}" for name in ("kid", "psnr_to_fp") for ending in ("", "_se")}
    assert part["rows"] == [{name: row[name] for name in row if name not in left_out} for row in whole["rows"]]
    assert part["protocol_id"] == whole["protocol_id"]
    assert len(collect([folder.parent]).sheets) == 1, "reports with other metrics lie in one table"


def test_a_reference_folder_is_what_fid_is_measured_against(shared, tmp_path):
    found, folder = shared()
    images = images_of(found, folder, "samples_full_precision")
    reference = tmp_path / "reference"
    reference.mkdir()
    from PIL import Image

    for i, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(reference / f"{i:03}.png")
    judged, _ = shared("reference=folder", f"reference.path={reference}")
    assert judged["rows"][0]["fid"] == pytest.approx(0, abs=1e-6)
    assert [row["fid"] for row in judged["rows"]] == pytest.approx([row["fid"] for row in found["rows"]], abs=1e-6)
    assert judged["protocol"]["reference_checksum"] != found["protocol"]["reference_checksum"]


def test_noise_statistics_are_moments_and_not_trajectories(make, outputs):
    few, many = (make("goal=noise", f"noise.images={images}", f"outputs={outputs}") for images in (4, 16))
    small, large = (load_file(folder / "noise.safetensors") for folder in (few, many))
    assert {name: value.shape for name, value in small.items() if "per_sample" not in name} == {
        name: value.shape for name, value in large.items() if "per_sample" not in name
    }


def test_reports_of_other_protocols_have_a_table_of_their_own(with_artefacts):
    first, folder = with_artefacts()
    other, _ = with_artefacts("judging.replicates=6", "images=6")
    assert first["protocol_id"] == protocol_id(first["protocol"]) != other["protocol_id"]
    sheets = collect([folder.parent]).sheets
    assert [len(sheet.runs) for sheet in sheets] == [1, 1] and sheets[0].title != sheets[1].title
