"""Converted checkpoints beside values of the original code: python experiments/ptqd_tables/converted.py FOLDER ...

A folder holds model.ckpt, config.json and reference.safetensors, whose x, t and context or labels lead to unet_output,
and latents to decoded, as the original networks computed them.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.original import convert


@torch.no_grad()
def differences(folder: Path) -> dict[str, float]:
    """The largest difference of the UNet's output and of decoded latents, and the largest value that they have."""
    reference = load_file(folder / "reference.safetensors")
    with TemporaryDirectory() as place:
        out = convert(folder / "model.ckpt", folder / "config.json", Path(place) / "pipeline").folder
        # by our own loading: a number of heads that is the same at all widths is no option of diffusers' UNet2DModel
        unet = DiffusersDenoiser.from_folder(str(out)).network
        (decoder,) = (path for path in out.iterdir() if path.name in ("vae", "vqvae"))
        kind = getattr(diffusers, json.loads((out / "model_index.json").read_text())[decoder.name][1])
        context = [reference["context"]] if "context" in reference else []
        output = unet(reference["x"], reference["t"], *context).sample
        decoded = kind.from_pretrained(decoder).eval().decode(reference["latents"]).sample
    return {
        "unet_output": _largest(output - reference["unet_output"]),
        "of": _largest(reference["unet_output"]),
        "decoded": _largest(decoded - reference["decoded"]),
        "decoded, of": _largest(reference["decoded"]),
    }


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


if __name__ == "__main__":
    say = Console(soft_wrap=True, highlight=False).print
    for word in sys.argv[1:]:
        say(f"{Path(word).name}: " + ", ".join(f"{key} {value:.3g}" for key, value in differences(Path(word)).items()))
