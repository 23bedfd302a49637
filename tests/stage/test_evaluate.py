"""Images of the bundled model that were recorded, judged in batches: the recorded numbers, and torchmetrics' own."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ptq_diffusion.engine.chunks import read_chunks, run_chunks
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric import Gathering, NoReference, ResNet9, Settings, StatisticsReference, judge
from ptq_diffusion.stage.evaluate import EVALUATION, read_evaluation
from ptq_diffusion.stage.evaluation.evaluation import DescribeImages, gather
from ptq_diffusion.stage.evaluation.stored_images import PairedImages
from ptq_diffusion.stage.samples import read_images
from tests.metric.metrics import METRICS
from tests.report.sweep.run_folders import EXAMPLE

VARIANTS = ("full_precision", "quantized", "corrected")
SETTINGS = Settings(replicates=50, seed=0, neighbours=2, seeds=[0, 1])
RECORDED = {
    "fid": (9.548825, 11.16599, 9.559138),
    "fid_se": (0.7631849, 0.5671943, 0.6375027),
    "sfid": (5.83447, 6.379583, 5.977002),
    "sfid_se": (0.16653, 0.1099594, 0.1248443),
    "kid": (0.07124731, 0.1171626, 0.07701926),
    "classifier_score": (2.040115, 1.142573, 1.839816),
    "precision": (1.0, 0.25, 1.0),
    "recall": (0.2097168, 0.004638672, 0.21875),
    "density": (1.5625, 0.125, 1.1875),
    "coverage": (0.005859375, 0.0004882812, 0.004394531),
    "fid_to_fp": (0.0, 5.278794, 1.471842),
    "fid_to_fp_se": (0.0, 0.6393849, 0.4175601),
    "kid_to_fp": (0.0, 0.05404367, 0.008888471),
    "feature_distance_to_fp": (0.0, 2.448176, 1.411503),
    "psnr_to_fp": (None, 15.80456, 26.83312),
    "psnr_to_fp_se": (None, 0.2902476, 0.3966855),
    "ssim_to_fp": (None, 0.6674241, 0.7625532),
    "ssim_to_fp_se": (None, 0.006544392, 0.005857123),
}
"""As judged when all images were in memory at once."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four images of each of two seeds by variant, in chunks of three, as a stage leaves them."""
    images = load_file(Path(__file__).parents[1] / "command" / "recorded_images.safetensors")
    place = tmp_path_factory.mktemp("samples")
    for variant in VARIANTS:
        (place / variant / "chunks").mkdir(parents=True)
        for seed in (0, 1):
            batch = images[f"cifar10_ddpm/eta{seed}/samples_{variant}"]
            for first in (0, 3):
                save_file(
                    {"images": batch[first : first + 3]}, place / variant / "chunks" / f"{seed}-{first}.safetensors"
                )
    return {variant: place / variant for variant in VARIANTS}


def gathering():
    return Gathering(ResNet9.from_folder("bundled:cifar10net"), METRICS)


def described(folders, batch, shop):
    """The work of every device."""
    return DescribeImages(gathering(), PairedImages(folders, batch))


def describe(folders, place, batch, devices=1):
    """The files of all batches."""
    shop = Workshop(Runtime("cpu", False, devices))
    run_chunks(partial(described, folders, batch), PairedImages(folders, batch).chunks(), place, shop, "evaluate")
    return place


def evaluated(folders, reference, place, batch):
    ours = gathering()
    real = reference.statistics(ours.extractor)
    incumbents = gather(ours, read_chunks(describe(folders, place / "batches", batch)), VARIANTS, real)
    return judge(ours, real, reference.checksum(ours.extractor), SETTINGS), incumbents


@pytest.mark.parametrize("batch", [3, 8])
def test_recorded_images_have_the_recorded_numbers_and_torchmetrics_agrees(folders, tmp_path, batch):
    reference = StatisticsReference("bundled:cifar10net")
    judgement, incumbents = evaluated(folders, reference, tmp_path, batch)
    for name, numbers in RECORDED.items():
        ours = [judgement.rows[variant][name] for variant in VARIANTS]
        assert [number is None for number in ours] == [number is None for number in numbers]
        shown = [number for number in ours if number is not None]
        assert shown == pytest.approx([number for number in numbers if number is not None], rel=1e-4, abs=1e-6), name
    for variant in VARIANTS:
        assert incumbents[f"{variant}/fid"] == pytest.approx(judgement.rows[variant]["fid"], rel=1e-4)
    for variant in VARIANTS[1:]:
        assert incumbents[f"{variant}/psnr_to_fp"] == pytest.approx(judgement.rows[variant]["psnr_to_fp"], rel=1e-5)


def test_without_real_images_torchmetrics_compares_with_the_float_images_too(folders, tmp_path):
    judgement, incumbents = evaluated(folders, NoReference(), tmp_path, batch=3)
    for variant in VARIANTS:
        assert incumbents[f"{variant}/fid"] == pytest.approx(judgement.rows[variant]["fid"], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("batch", [1, 3, 5, 8, 100])
def test_images_are_streamed_in_their_order_in_batches_of_one_size(folders, batch):
    stream = PairedImages(folders, batch)
    batches = list(map(stream.batch, stream.chunks()))
    assert [len(images["quantized"]) for images in batches] == [len(part) for part in torch.arange(8).split(batch)]
    assert [chunk.count for chunk in stream.chunks()] == [len(images["quantized"]) for images in batches]
    for variant in VARIANTS:
        assert torch.equal(torch.cat([images[variant] for images in batches]), read_images(folders[variant]))


def test_variants_of_different_numbers_of_images_are_refused(folders, tmp_path):
    (tmp_path / "chunks").mkdir()
    save_file({"images": read_images(folders["quantized"])[:5]}, tmp_path / "chunks" / "0.safetensors")
    with pytest.raises(ValueError, match="as many images of every variant, got .*'corrected': 5"):
        PairedImages(folders | {"corrected": tmp_path}, 2)


def test_a_batch_reads_no_chunk_but_its_own(folders, tmp_path):
    shutil.copytree(folders["quantized"], tmp_path / "samples")
    images = PairedImages({variant: tmp_path / "samples" for variant in VARIANTS}, 3)
    first, second, _ = images.chunks()
    for chunk in sorted((tmp_path / "samples" / "chunks").iterdir())[2:]:
        chunk.write_bytes(b"")
    assert len(images.batch(first)["corrected"]) == 3
    with pytest.raises(SafetensorError):
        images.batch(second)


def test_devices_share_the_batches_and_leave_the_bytes_of_one(folders, tmp_path):
    """Also where one device has described some of them before it was killed."""
    alone, shared = describe(folders, tmp_path / "alone", 3), tmp_path / "shared"
    shared.mkdir()
    names = sorted(file.name for file in alone.iterdir())
    shutil.copyfile(alone / names[0], shared / names[0])
    assert len(names) == 3 and names == sorted(file.name for file in describe(folders, shared, 3, devices=2).iterdir())
    assert [name for name in names if (alone / name).read_bytes() != (shared / name).read_bytes()] == []


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda content: [], "Evaluation"),
        (lambda content: content | {"rows": content["rows"][:2]}, "rows"),
        (
            lambda content: {**content, "rows": [row | {"ssim_to_fp_se": [1]} for row in content["rows"]]},
            "ssim_to_fp_se",
        ),
        (lambda content: {**content, "paired": [{}]}, "paired.0.a"),
        (lambda content: {**content, "paired": [pair | {"low": {}} for pair in content["paired"]]}, "paired.0.low"),
        (lambda content: {**content, "paired": content["paired"][:0]}, "one difference of quantized and corrected"),
    ],
    ids=["a list", "a variant less", "a number that is a list", "no pair", "half an interval", "no differences"],
)
def test_a_damaged_evaluation_is_refused_by_the_place(tmp_path, damage, place):
    content = json.loads((EXAMPLE / "report.json").read_text())
    for number, text in enumerate((content, damage(content))):
        (tmp_path / EVALUATION).write_text(json.dumps(text))
        if number:
            with pytest.raises(ValueError, match=rf"as it was written, got .*{place}.*the same command makes it again"):
                read_evaluation(tmp_path)
        else:
            assert read_evaluation(tmp_path) == content
