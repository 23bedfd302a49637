"""goal=export writes a pipeline that stock diffusers loads and that draws the corrected images."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

import ptq_diffusion.correction
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.samples import read_images


@pytest.mark.parametrize(
    ("correction", "sampler"),
    [
        ("readout_matched", "ddim"),
        ("rescaled_matched", "ddim"),
        ("rescaled_matched", "ddpm"),
        ("rescaled_matched", "euler"),
        ("ptqd", "euler_ancestral"),
        ("rescaled_readout_matched", "dpm_solver"),
        ("rescaled_matched", "lcm"),
    ],
)
def test_the_exported_pipeline_draws_the_corrected_images(shared, correction, sampler):
    chosen = [f"correction={correction}", f"sampler={sampler}", "sampler.steps=3", "images=4", "seeds=[5]"]
    chosen += ["noise.images=16", "micro_batch=16"]
    folder = shared("goal=export", *chosen)
    read = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert read == {".json", ".safetensors", ".yaml"}
    pipe = DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    streams = [generator("images", 5, index) for index in range(4)]
    images = pipe(4, generator=streams, num_inference_steps=3, output_type="pt").images
    assert torch.equal(to_bytes(images), read_images(shared("goal=samples_corrected", *chosen)))


def test_the_folder_loads_as_the_readme_says(shared):
    """In a process that has imported nothing else."""
    folder = shared("goal=export", "correction=wiener_matched", "images=4", "seeds=[5]", "noise.images=16")
    readme = (Path(ptq_diffusion.correction.__file__).parent / "README.md").read_text()
    lines = re.search(r"(    import ptq_diffusion.*?images = [^\n]*)", readme, re.DOTALL)[1]
    code = textwrap.dedent(lines).replace("outputs/store/export/SIGNATURE", str(folder)).replace("=20", "=3")
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert len(images) == 8"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_an_export_takes_the_bytes_that_the_report_states(make, report, outputs):
    """Of the bundled network with four bits a weight: packed integers, scales, settings of every step, coefficients."""
    chosen = [
        "model.path=bundled:cifar10_ddpm",
        "bitwidth=w4a8",
        "correction=ptqd",
        "images=4",
        "seeds=[5]",
        "noise.images=2",
        "calibration.images=2",
        "sampler.steps=2",
        f"outputs={outputs}",
    ]
    rows, _ = report(*chosen)
    (corrected,) = (row for row in rows["rows"] if row["variant"] == "corrected")
    folder = make("goal=export", *chosen)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("files.json", "config.yaml")]
    size = sum(path.stat().st_size for path in files)
    assert corrected["weight_bytes"] <= size <= 1.15 * corrected["weight_bytes"]
    (full,) = (row for row in rows["rows"] if row["variant"] == "full_precision")
    assert size < full["weight_bytes"] / 6
