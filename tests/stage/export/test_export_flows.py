"""Exported pipelines of flow matching, loaded in a process of their own, draw what goal=samples_corrected drew."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from ptq_diffusion.correction.pipeline.pipeline_folder import require_guides
from ptq_diffusion.engine.conditions import EncodedPrompts
from ptq_diffusion.model import Condition
from ptq_diffusion.model.family import flux
from ptq_diffusion.sampler import DDPM, Table
from ptq_diffusion.stage import prompts as stage
from ptq_diffusion.stage.samples import read_images
from tests.model import pipelines
from tests.model.networks import condition_of, denoiser_of

COUNT, SEED, STEPS, SIDE = 2, 5, 3, 8
DRAW = """
import json, sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
import ptq_diffusion.correction
from ptq_diffusion.numeric.seed import generator

for folder in sys.argv[1:]:
    asked, errors = json.load(open(f"{folder}/asked.json")), {}
    pipe = DiffusionPipeline.from_pretrained(asked.pop("exported"), **dict.fromkeys(asked.pop("absent")))
    pipe.set_progress_bar_config(disable=True)
    scale, others = asked.pop("scale"), asked.pop("others")
    def draw(scale):
        streams = [generator("images", asked["seed"], i) for i in range(asked["count"])]
        options = {name: value for name, value in asked.items() if name not in ("seed", "count")}
        tensors = load_file(f"{folder}/asked.safetensors")
        return pipe(**options, **tensors, guidance_scale=scale, generator=streams, output_type="pt").images
    for other in others:
        try:
            draw(other)
        except ValueError as error:
            errors[str(other)] = str(error)
    save_file({"images": draw(scale).contiguous()}, f"{folder}/images.safetensors")
    json.dump(errors, open(f"{folder}/errors.json", "w"))
"""
SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0)
DYNAMIC = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.3, max_shift=1.7)
NAMES = {"embeddings": "prompt_embeds", "pooled": "pooled_prompt_embeds", "mask": "prompt_attention_mask"}
KINDS = {
    "sd3": (pipelines.sd3, ["correction=readout", "condition.guidance.scale=2"], 2.0),
    "flux": (
        pipelines.flux,
        ["correction=readout", "condition.guidance.scale=1", "condition.guidance.embedded=3.5"],
        3.5,
    ),
    "sana": (
        lambda scheduler: pipelines.sana(scheduler, sample_size=2 * SIDE),
        ["correction=rescaled_matched", "condition.guidance.scale=2", "noise.images=18"],
        2.0,
    ),
}


@pytest.fixture
def words(monkeypatch, tmp_path):
    """From a kind to the words of its experiment: two prompts whose embeddings are random, and small states."""
    monkeypatch.setattr(flux, "SIDE", SIDE)

    class RandomRows(nn.Module):
        def __init__(self, path):
            super().__init__()
            self.kind = json.loads((tmp_path / path.split("/")[-1] / "kind.json").read_text())

        def rows_and_negative(self, prompts, negative, device):  # noqa: ARG002
            tensors = condition_of(denoiser_of(self.kind), len(prompts) + 1).tensors()
            tensors.pop("scale", None)
            whole = Condition(**tensors)
            return whole.rows(slice(len(prompts))), whole.rows(slice(len(prompts), None))

    monkeypatch.setattr(stage, "TextEncoders", RandomRows)
    monkeypatch.setattr(stage, "text_checksum", lambda path: path)
    monkeypatch.setattr("ptq_diffusion.command.check.preflight.check_condition", lambda *_, **__: None)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")

    def of(kind):
        make, own, _ = KINDS[kind]
        folder = tmp_path / kind
        make(SCHEDULER if kind == "sana" else DYNAMIC).save_pretrained(folder)
        pipelines.edit(folder / "vae" / "config.json", **({} if kind == "sana" else {"shift_factor": 0.1}))
        (folder / "kind.json").write_text(json.dumps(kind))
        words = ["condition=prompts", f"condition.source.path={tmp_path / 'prompts.txt'}", "sampler=flow_euler"]
        words += [f"sampler.steps={STEPS}", f"images={COUNT}", f"seeds=[{SEED}]", "calibration.images=2"]
        return [*words, f"model.path={folder}", "noise.images=8", *own]

    return of


def ask(kind, exported, prompts, folder):
    """Write what the pipeline is asked with."""
    _, words, scale = KINDS[kind]
    source = EncodedPrompts.load(prompts)
    condition, null = source.of(SEED, range(COUNT), "images"), source.null().expanded(COUNT)
    tensors = {NAMES[name]: tensor for name, tensor in condition.tensors().items()}
    if kind != "flux":
        tensors |= {f"negative_{NAMES[name]}": tensor for name, tensor in null.tensors().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "asked.safetensors")
    side = (4 if kind == "sana" else 2) * SIDE
    asked = {"exported": str(exported), "seed": SEED, "count": COUNT, "scale": scale, "others": [1.5 * scale]}
    asked |= {"height": side, "width": side, "num_inference_steps": STEPS}
    parts = 1 if kind == "sana" else 2 if kind == "flux" else 3
    asked["absent"] = [f"{part}{place}" for part in ("text_encoder", "tokenizer") for place in ("", "_2", "_3")[:parts]]
    asked |= {"use_resolution_binning": False, "negative_prompt": None} if kind == "sana" else {}
    (folder / "asked.json").write_text(json.dumps(asked))


@pytest.mark.filterwarnings("ignore")
def test_the_stock_pipelines_draw_the_corrected_images(make, words, tmp_path):
    expected = {}
    for kind in KINDS:
        options = words(kind)
        ask(kind, make("goal=export", *options), make("goal=prompts", *options), tmp_path / kind)
        expected[kind] = read_images(make("goal=samples_corrected", *options))
    ended = subprocess.run(
        [sys.executable, "-c", DRAW, *(str(tmp_path / kind) for kind in KINDS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for kind, images in expected.items():
        drawn = load_file(tmp_path / kind / "images.safetensors")["images"]
        assert images.float().std() > 1, kind
        assert (255 * drawn - images).abs().max() < 0.51, kind
        scale = KINDS[kind][2]
        (error,) = json.loads((tmp_path / kind / "errors.json").read_text()).values()
        assert (
            f"expected guidance_scale={scale:g}" in error
            and f"call the pipeline with guidance_scale={scale:g}" in error
        )


def test_guidance_that_a_pipeline_does_otherwise_is_refused_before_anything_is_computed(make, words, tmp_path):
    """Flux asks about rows apart; Stable Diffusion guides all channels that its network says, a variance too."""
    with pytest.raises(ValueError, match=r"condition.guidance.scale=1, for a FluxPipeline does not ask about two rows"):
        make("goal=export", *words("flux"), "condition.guidance.scale=2")
    variance = [replace(step, sigma_high=1.0) for step in DDPM(2).table(DDPMScheduler().config)]
    table = Table("ddpm", "epsilon", 1.0, 1.0, tuple(variance))
    require_guides("DiTPipeline", 2.0, table)
    require_guides("StableDiffusionPipeline", 1.0, table)
    with pytest.raises(
        ValueError, match=r"a StableDiffusionPipeline guides a learned variance .*variance_type=fixed_s"
    ):
        require_guides("StableDiffusionPipeline", 2.0, table)
    assert not list((tmp_path / "outputs").rglob("chunks"))


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_a_family_that_has_none_are_refused_by_its_name(make, words, tmp_path, kind):
    with pytest.raises(ValueError, match=r"UNet2DModel, .*got (SD3|Flux|Sana)Transformer2DModel; set goal=export"):
        make("goal=onnx", *words(kind))
    assert not list((tmp_path / "outputs").rglob("chunks"))
