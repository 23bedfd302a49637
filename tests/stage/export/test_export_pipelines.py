"""Exported latent, conditional, guided pipelines draw in stock diffusers what goal=samples_corrected drew."""

import json

import pytest
import torch
from diffusers import DiTPipeline, StableDiffusionPipeline

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.data import Labels
from ptq_diffusion.engine.conditions import DrawnLabels
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.samples import read_images
from tests.model import pipelines

COUNT, SEED, SCALE, STEPS = 3, 5, 2.0, 3
PROMPTS = ["a cat", "two dogs"]
SHARED = {
    "num_inference_steps": STEPS,
    "guidance_scale": SCALE,
    "output_type": "np",
}


def prompts(folder):
    pipelines.stable_diffusion(folder / "model").save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["condition=prompts", f"condition.source.path={folder / 'prompts.txt'}", "condition.negative_prompt=bad"]

    def draw(exported, streams, scale=SCALE):
        pipe = StableDiffusionPipeline.from_pretrained(exported, safety_checker=None)
        texts = {"prompt": [PROMPTS[i % 2] for i in range(COUNT)], "negative_prompt": ["bad"] * COUNT}
        return pipe(**texts, height=16, width=16, generator=streams, **SHARED | {"guidance_scale": scale}).images

    return words, draw


def labels(classes):
    return DrawnLabels(Labels(None, None), classes).of(SEED, range(COUNT), "images").labels


def classes(folder):
    (folder / "model").mkdir()
    weight = pipelines.classes(folder / "model")

    def draw(exported, streams, scale=SCALE):
        pipe = StableDiffusionPipeline.from_pretrained(exported, text_encoder=None, tokenizer=None)
        embeddings = {"prompt_embeds": weight[labels(3), None], "negative_prompt_embeds": weight[[3] * COUNT, None]}
        return pipe(**embeddings, height=16, width=16, generator=streams, **SHARED | {"guidance_scale": scale}).images

    return ["condition=labels"], draw


def dit(folder):
    (folder / "model").mkdir()
    pipelines.dit(folder / "model")

    def draw(exported, streams, scale=SCALE):
        return DiTPipeline.from_pretrained(exported)(
            labels(10).tolist(), generator=streams, **SHARED | {"guidance_scale": scale}
        ).images

    return ["condition=labels", "quantizer.embedding.bits=4"], draw


READOUT = ["correction=readout", "noise.images=8"]
DIFFERENCES = ["bitwidth=w4a4", "noise.images=16", "correction=rescaled", "+range_search@correction.differences=mse"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, correction",
    [(prompts, READOUT), (classes, READOUT), (dit, READOUT), (prompts, DIFFERENCES), (dit, DIFFERENCES)],
)
def test_the_stock_pipeline_draws_the_corrected_images(make, kind, correction, tmp_path):
    words, draw = kind(tmp_path)
    words += [f"model.path={tmp_path / 'model'}", f"condition.guidance.scale={SCALE:g}", *correction]
    words += ["sampler.eta=0", f"images={COUNT}", f"seeds=[{SEED}]", f"sampler.steps={STEPS}"]
    exported = make("goal=export", *words)
    expected = read_images(make("goal=samples_corrected", *words))
    corrections = [FittedCorrection.load(file.parent) for file in exported.glob("*/correction.json")]
    assert any(fitted.pairs_rows for fitted in corrections) is (correction is DIFFERENCES)
    assert {path.suffix for path in exported.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt", ".yaml"}
    streams = [generator("images", SEED, index) for index in range(COUNT)]
    images = torch.from_numpy(draw(exported, streams)).permute(0, 3, 1, 2)
    assert expected.float().std() > 1
    assert (255 * images - expected).abs().max() < 1
    for scale in (1.5 * SCALE, 1.2):
        with pytest.raises(ValueError, match=f"expected guidance_scale=2, .* got about {scale:g}; call"):
            draw(exported, streams, scale)


@pytest.mark.filterwarnings("ignore")
def test_the_graphs_of_a_model_with_prompts_read_their_embeddings(make, tmp_path):
    words, _ = prompts(tmp_path)
    folder = make("goal=onnx", f"model.path={tmp_path / 'model'}", "correction=none", "sampler.steps=1", *words)
    assert json.loads((folder / "onnx.json").read_text())["condition"] == ["embeddings"]
