"""A class-conditional network with guidance through whole experiments."""

import pytest
import torch

from ptq_diffusion.data import Labels, TextPrompts
from ptq_diffusion.data.prompts import FIRST
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.conditions import DrawnLabels, EncodedPrompts
from ptq_diffusion.model import Condition, Guided
from ptq_diffusion.network import load_quantized
from ptq_diffusion.stage import prompts as stage
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.samples import read_images

CLASSES, NO_CLASS = 4, 3


@pytest.fixture
def guided(tiny_model_folder):
    """Overrides of a guided experiment."""
    return [
        f"model.path={tiny_model_folder(classes=CLASSES)}",
        "condition=labels",
        f"condition.source.no_class={NO_CLASS}",
        "condition.guidance.scale=2",
        "sampler.steps=2",
    ]


def test_a_whole_experiment(report, make, guided, tmp_path):
    """Bits by sensitivity, rescaled layers and readouts; each image costs two forwards a step."""
    words = [*guided, "seeds=[0]", "images=4", "noise.images=16"]
    budget = ["bitwidth=budget", "bitwidth.saving=12", "sensitivity.images=4", "correction=rescaled_readout_matched"]
    rows = report(*words, *budget)[0]["rows"]
    assert [row["variant"] for row in rows] == ["full_precision", "quantized", "corrected"]
    plain = report(*words, "condition.guidance.scale=1")[0]["rows"]
    assert rows[0]["bops_per_image"] == 2 * plain[0]["bops_per_image"]
    networks = [load_quantized(folder.parent) for folder in tmp_path.rglob("quantized.json")]
    assert {network.denoiser.scale for network in networks if isinstance(network.denoiser, Guided)} == {2.0}
    assert len({network.fingerprint() for network in networks}) == len(networks) == 2


def test_devices_and_interruptions_change_no_image(imported, make, guided, tmp_path, monkeypatch):
    words = [*guided, "goal=samples_full_precision", "seeds=[0]"]
    expected = read_images(make(*words))
    assert not torch.equal(expected, read_images(make(*words, "condition.guidance.scale=1")))
    forward, done = DrawImages.forward, []

    def dies(work, chunk, device):
        if done:
            raise KeyboardInterrupt
        done.append(chunk)
        return forward(work, chunk, device)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DrawImages, "forward", dies)
        make(*words, f"outputs={tmp_path / 'again'}")
    assert torch.equal(read_images(make(*words, f"outputs={tmp_path / 'again'}")), expected)
    shared = make(*words, "runtime.devices=2", f"outputs={tmp_path / 'shared'}")
    assert torch.equal(read_images(shared), expected)


def test_labels_belong_to_samples():
    """Whatever their micro-batch, and another for another seed or purpose."""
    source = DrawnLabels(Labels(None, NO_CLASS), CLASSES)

    def drawn(purpose, seed, micro_batch):
        parts = [chunk.condition(source).rows(slice(chunk.count)) for chunk in chunks(purpose, [seed], 40, micro_batch)]
        return torch.cat([part.labels for part in parts]).tolist()

    labels = drawn("images", 0, 40)
    assert labels == drawn("images", 0, 7) and set(labels) == {0, 1, 2}
    assert labels != drawn("images", 1, 40) and labels != drawn("noise", 0, 40)
    assert set(DrawnLabels(Labels([2], None), CLASSES).of(0, range(9), "images").labels.tolist()) == {2}
    told = DrawnLabels(Labels(None, None), CLASSES, 3.5).of(0, range(2), "images")
    assert told.scale.tolist() == [3.5, 3.5]


@pytest.fixture
def encoder(monkeypatch):
    """An encoder of prompts that counts: the embedding of a text is its length, of the negative one 0."""
    encoded = []

    class Lengths(torch.nn.Module):
        def __init__(self, path):
            super().__init__()

        def rows(self, prompts, device):
            encoded.extend(prompts)
            return Condition(embeddings=torch.tensor([float(len(prompt)) for prompt in prompts])[:, None, None])

        def rows_and_negative(self, prompts, negative, device):
            return self.rows(prompts, device), Condition(embeddings=torch.zeros(1, 1, 1))

    monkeypatch.setattr(stage, "TextEncoders", Lengths)
    monkeypatch.setattr(stage, "text_checksum", lambda path: path)
    monkeypatch.setattr("ptq_diffusion.command.check.preflight.check_condition", lambda *_, **__: None)
    return encoded


def test_every_prompt_is_encoded_once_and_used_in_turn(make, encoder, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a horse \na cat\n")
    words = ["goal=prompts", "condition=prompts", f"condition.source.path={file}"]
    folder = make(*words)
    assert encoder == ["a cat", "a horse"]
    source = EncodedPrompts.load(folder)
    assert source.of(5, range(2, 6), "images").embeddings.flatten().tolist() == [5, 5, 7, 5]
    assert source.null().embeddings.tolist() == [[[0.0]]]
    assert make(*words, "condition.guidance.scale=3") == folder and len(encoder) == 2
    assert make(*words, "condition.negative_prompt=blurred") != folder
    file.write_text("a cat\n")
    assert make(*words) != folder and TextPrompts(str(file)).texts() == ["a cat"]


def test_images_have_other_prompts_than_were_fitted_on_as_far_as_there_are_enough(make, encoder, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{'a' * (j + 1)}\n" for j in range(16)))
    source = EncodedPrompts.load(make("goal=prompts", "condition=prompts", f"condition.source.path={file}"))
    drawn = {name: set(source.of(0, range(2), name).embeddings.flatten().tolist()) for name in FIRST}
    assert drawn["images"] == {1.0, 2.0}
    assert len(set.union(*drawn.values())) == 2 * len(FIRST)
    for name in FIRST:
        assert sorted(source.of(0, range(16), name).embeddings.flatten().tolist()) == list(range(1, 17))


BAD = {
    "labels out of range": (["condition.source.only=[0,9]"], "labels of 0 to 3, which the network knows, got 9"),
    "no class out of range": (["condition.source.no_class=4"], "got 4; set condition.source.no_class"),
    "no labels": (["condition.source.only=[]"], "at least one, got \\[\\]"),
    "guidance without a null condition": (
        ["condition.source.no_class=null"],
        "knows a null condition.*condition.guidance.scale=1",
    ),
    "an interval upside down": (["condition.guidance.interval=[1,0]"], r"within \[0, 1\]"),
    "an interval of three": (["condition.guidance.interval=[0,1,2]"], "condition.guidance.interval"),
    "guidance of diffusers' turbo models": (
        ["condition.guidance.scale=0"],
        "scale=0, .*; guidance_scale=0 of diffusers, no guidance, is condition.guidance.scale=1 here",
    ),
    "a fit of no condition": (["noise.guidance=0"], "no guidance, is noise.guidance=1 here"),
    "a scale to embed": (["condition.guidance.embedded=3.5"], "got 3.5; set condition.guidance.embedded=null$"),
    "an export of less": (["goal=export", "condition.guidance.scale=0.5"], "set condition.guidance.scale=1 for none"),
    "an export that no pipeline draws": (["goal=export"], "one that reads labels.*goal=samples_corrected"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_before_anything_is_computed(make, guided, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        make(*guided, *words)
    assert not list(tmp_path.glob("outputs/store/*/*"))


def test_a_condition_of_another_kind_than_the_network_reads_is_refused(make, guided, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(" \n")
    prompts = ["condition=prompts", f"condition.source.path={file}"]
    for words, message in (
        (["condition=labels"], "condition=none of an unconditional network, got condition=labels"),
        (prompts, "got condition=prompts; set condition=none"),
        (["condition.guidance.scale=2"], "guidance of a condition only.*condition.guidance.scale=1"),
        (["goal=prompts"], "expected prompts to encode"),
        (guided[:1], "condition=labels of a network of class labels, got condition=none"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*words)
    for path, message in ((file, "at least one prompt"), ("/nowhere", "there is no file /nowhere")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            TextPrompts(str(path)).texts()
    assert not list(tmp_path.glob("outputs/store/*/*"))
