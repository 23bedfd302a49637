"""The images of the bundled networks are those that were recorded before the package was rebuilt (commit 70880db)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.command.experiment import run
from ptq_diffusion.engine.chunks import read_chunks
from tests.experiments import composed

RECORDED = load_file(Path(__file__).parent / "recorded_images.safetensors")
WORDS = [
    "correction=ptqd",
    "sampler.steps=4",
    "images=4",
    "seeds=[0]",
    "micro_batch=4",
    "calibration.images=4",
    "noise.images=8",
    "runtime.accelerator=cpu",
    "runtime.progress=false",
    "logger=none",
]
GOALS = ("samples_full_precision", "samples_quantized", "samples_corrected")


def same_arithmetic() -> bool:
    """Whether this machine's convolutions and matrix products round as those of the machine that recorded."""
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 64, 32, 32, generator=draw), torch.randn(64, 64, 3, 3, generator=draw)
    convolved = torch.nn.functional.conv2d(x, w, padding=1)[:, 0, 0, :8]
    multiplied = (x.flatten(1)[:, :512] @ w.flatten(1)[:, :512].T)[:, :8]
    return torch.equal(convolved + multiplied, RECORDED["probe"])


@pytest.mark.parametrize("model", ["cifar10_ddpm", "fashion_ddpm"])
@pytest.mark.parametrize("eta", [0, 1])
def test_images_are_those_that_were_recorded(model: str, eta: int, tmp_path: Path, capsys) -> None:
    for goal in GOALS:
        outputs = f"outputs={tmp_path / 'outputs'}"
        run(composed(*WORDS, f"model={model}", f"sampler.eta={eta}", outputs, f"goal={goal}"))
        path = Path(capsys.readouterr().out.strip().splitlines()[-1])
        (chunk,) = read_chunks(path / "chunks")
        recorded = RECORDED[f"{model}/eta{eta}/{goal}"]
        if same_arithmetic():
            assert torch.equal(chunk["images"], recorded), f"{goal} differs from what was recorded"
        else:  # Another processor rounds otherwise, which quantizers widen: to 2.34 grey values with AVX2 alone.
            difference = (chunk["images"].int() - recorded.int()).abs().float()
            assert difference.mean() < (1 if goal == "samples_full_precision" else 3), (
                f"{goal} differs by more than rounding"
            )
