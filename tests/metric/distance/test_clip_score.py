"""CLIP score: torchmetrics' number, image by image; and what it cannot be taken of."""

import shutil

import pytest
import torch

from ptq_diffusion.metric import FLOAT, CLIPScore, Evidence, Gathering, Pixels, Settings
from tests.metric.metrics import textures

PROMPTS = ["a cat", "two dogs", "a cat", "red", "ab"]


@pytest.fixture
def images():
    return {FLOAT: textures(5, seed=0), "other": textures(5, seed=1)}


def judged(metric, images, prompts):
    """The metric of images that come in two batches."""
    gathering = Gathering(Pixels(3, 4), [metric], prompts)
    for part in (slice(0, 2), slice(2, None)):
        gathering.add({name: batch[part] for name, batch in images.items()})
    return metric.paired(Evidence(gathering.features(), gathering.scores(), None, "none", Settings(20, 0, 1, [0])))


def of_torchmetrics(folder, images, prompts):
    """Of each image, before torchmetrics takes the mean and clamps it at 0."""
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update
    from transformers import CLIPModel, CLIPProcessor

    class Tensors(CLIPModel):
        """Returns embeddings, as transformers did when this torchmetrics was made."""

        def get_image_features(self, *arguments):
            return super().get_image_features(*arguments).pooler_output

        def get_text_features(self, *arguments):
            return super().get_text_features(*arguments).pooler_output

    network, processor = Tensors.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        return _clip_score_update(images, prompts, network, processor)[0]


def test_it_is_that_of_torchmetrics(clip_folder, images):
    metric = CLIPScore(str(clip_folder))
    whole = judged(metric, images, PROMPTS)
    for name, batch in images.items():
        theirs = of_torchmetrics(clip_folder, batch, PROMPTS)
        torch.testing.assert_close(metric.of_prompts(batch, PROMPTS), theirs, atol=1e-4, rtol=0)
        assert whole.estimates[name].value == pytest.approx(float(theirs.mean()), abs=1e-4)
        assert whole.estimates[name].standard_error > 0 and theirs.std() > 0.1


def test_it_tells_prompts_apart_and_cuts_long_ones(clip_folder, images):
    metric, batch = CLIPScore(str(clip_folder)), images[FLOAT]
    scores = metric.of_prompts(batch, PROMPTS)
    assert not torch.allclose(metric.of_prompts(batch, PROMPTS[::-1]), scores)
    assert metric.of_prompts(batch, ["a" * 50] * 5).isfinite().all()
    grey = batch[:, :1]
    assert torch.equal(metric.of_prompts(grey, PROMPTS), metric.of_prompts(grey.repeat(1, 3, 1, 1), PROMPTS))
    with pytest.raises(ValueError, match="expected the prompts of the images for clip_score"):
        judged(metric, images, None)


def without(name):
    return lambda folder: [file.unlink() for file in folder.glob(name)]


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "no weights": (without("*.safetensors"), "lacks safetensors weights"),
    "pickles": (pickled, "lacks safetensors weights"),
    "no tokenizer": (without("tokenizer_config.json"), "lacks tokenizer_config.json"),
    "no preprocessing": (without("*processor_config.json"), "lacks preprocessor_config.json"),
    "broken weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"broken"), "expected a CLIPModel"),
    "no folder": (shutil.rmtree, "lacks config.json"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_cannot_score_is_refused_in_one_line(clip_folder, tmp_path, change, message):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        CLIPScore(str(folder)).check(PROMPTS)
    assert "\n" not in str(caught.value)


def test_a_model_without_prompts_is_refused_before_anything_is_computed(clip_folder, make, tmp_path):
    words = ["+metric@metric.clip_score=clip_score", f"metric.clip_score.path={clip_folder}"]
    with pytest.raises(ValueError, match="expected prompts that images are scored by.*~metric.clip_score leaves out"):
        make(*words)
    assert not list(tmp_path.glob("outputs/store/*/*"))


def test_its_checksum_follows_the_files(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    before = CLIPScore(str(folder)).checksum()
    assert before == CLIPScore(str(clip_folder)).checksum()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    assert CLIPScore(str(folder)).checksum() != before


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_prompts_reach_the_report(clip_folder, report, tmp_path):
    from tests.model import pipelines

    folder, file = tmp_path / "model", tmp_path / "prompts.txt"
    pipelines.stable_diffusion(folder).save_pretrained(folder)
    file.write_text("a cat\ntwo dogs\nred\n")
    words = [f"model.path={folder}", "condition=prompts", f"condition.source.path={file}", "feature=pixels"]
    few = ["images=3", "seeds=[0]", "calibration.images=2", "noise.images=2", "sampler.steps=2", "micro_batch=2"]
    metric = ["+metric@metric.clip_score=clip_score", f"metric.clip_score.path={clip_folder}"]
    content, _ = report(*words, *few, *metric)
    assert all(row["clip_score"] is not None for row in content["rows"])
    assert "clip_score" in content["higher_is_better"] and "fid" not in content["higher_is_better"]
    assert set(content["protocol"]["files_of_metrics"]) == {"clip_score"}
    assert {pair["metric"] for pair in content["paired"]} > {"clip_score"}
