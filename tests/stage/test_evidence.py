"""The files of a model folder that each stage depends on: what an artefact does not depend on makes none anew."""

import pytest

from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.engine import signature
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.signature import Signatures
from tests.experiments import composed
from tests.model import pipelines

PLAIN = ("prompts", "trajectories", "calibrate", "plan", "quantize", "float_path", "noise", "fit")
DRAWN = ("samples_full_precision", "samples_quantized", "samples_corrected")
ALL = {*PLAIN, *DRAWN, "evaluate", "export"}
CHANGES = {
    "unet/*.safetensors": ALL - {"prompts"},
    "unet/config.json": ALL,
    "scheduler/*.json": ALL - {"prompts"},
    "vae/*.safetensors": {*DRAWN, "evaluate", "export"},
    "text_encoder/*.safetensors": ALL,
    "tokenizer/*.json": ALL,
    "model_index.json": ALL,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("correction", ["ptqd", "auto"])
def test_a_stage_depends_on_the_files_that_it_reads(correction, tmp_path, monkeypatch):
    monkeypatch.setattr(signature, "source", lambda *_: "the same")
    folder = tmp_path / "model"
    pipelines.stable_diffusion(folder).save_pretrained(folder)
    (tmp_path / "prompts.txt").write_text("a cat")
    prompts = ["condition=prompts", f"condition.source.path={tmp_path / 'prompts.txt'}"]
    words = ["model=diffusers", f"model.path={folder}", *prompts, "feature=pixels", f"correction={correction}"]
    cfg, stages = composed(*words), [STAGES[name] for name in ALL]

    def signatures():
        known = Signatures(Runtime("cpu", False))
        return {stage.name: known.of(stage, cfg) for stage in stages}

    before = signatures()
    for pattern, expected in CHANGES.items():
        file = sorted(folder.glob(pattern))[0]
        file.write_bytes(file.read_bytes() + b"\n")
        now = signatures()
        # A choice among corrections draws images.
        drawing = {"fit"} if correction == "auto" and pattern.startswith("vae") else set()
        assert {name for name in ALL if now[name] != before[name]} == expected | drawing, pattern
        before = now
