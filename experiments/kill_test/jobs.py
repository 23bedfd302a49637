"""Jobs on a tiny random DDPM and images of noise that between them run every stage, and what is left of them."""

import hashlib
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from ptq_diffusion.engine.store import LOCKED, PARTIAL, SECONDS

SEED = 0
TRIES = 3
"""Kills that are aimed at a stage, at most, until one falls within it."""
ALWAYS = ["runtime.accelerator=cpu", "runtime.progress=false", "logger=none", "outputs=outputs"]
TINY = ["model=diffusers", "model.path=model", "sampler.steps=4", "images=20", "seeds=[0,1]", "micro_batch=4"]
TINY += ["feature=cifar10net", "calibration.images=8", "noise.images=16", "sensitivity.images=8", "trial.images=16"]
TINY += ["judging.replicates=20"]
FEW_STEPS = {"steps": 30, "batch_size": 8, "warmup": 2, "cooldown": 2, "checkpoint_every": 4}
DENOISER = ["training.network.sample_size=16", "training.network.block_out_channels=[8,8]"]
DENOISER += ["training.network.down_block_types=[DownBlock2D,DownBlock2D]", "training.network.attention_head_dim=8"]
DENOISER += ["training.network.up_block_types=[UpBlock2D,UpBlock2D]"]
AUTOENCODER = ["autoencoder.network.sample_size=16", "autoencoder.network.block_out_channels=[8,8]"]
AUTOENCODER += ["autoencoder.network.latent_channels=4"]
AUTOENCODER += ["autoencoder.network.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]"]
AUTOENCODER += ["autoencoder.network.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]"]
LATENT = ["training.network.unet.sample_size=8", "training.network.unet.block_out_channels=[8,8]"]
LATENT += ["training.network.unet.in_channels=4", "training.network.unet.out_channels=4"]
LATENT += ["training.network.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]"]
LATENT += ["training.network.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]"]
LATENT += ["training.network.unet.cross_attention_dim=8"]
BUDGET = ["bitwidth=budget", "bitwidth.saving=3", "bitwidth.weights=[3,4]", "bitwidth.activations=[4,8]"]
FEW_CANDIDATES = ["~correction.candidates.matched", "~correction.candidates.readout_matched"]
FEW_CANDIDATES += ["~correction.candidates.rescaled_matched", "~correction.candidates.rescaled_guided_matched"]
FEW_CANDIDATES += ["correction.judge.replicates=20"]


def few_steps(place: str) -> list[str]:
    """Words that make a training short."""
    return [f"{place}.{option}={value}" for option, value in FEW_STEPS.items()]


JOBS = {
    "step_snr": [*TINY, "goal=plan", "bitwidth=step_snr", "calibration_set=density"],
    "blocks": [*TINY, "goal=quantize", "rounding=brecq", "rounding.descent.iterations=10"],
    "budget": [*TINY, *BUDGET, "bitwidth.count_correction=true", "goal=quantize", "correction=matched", "rounding=gptq"]
    + [
        "equalisation@quantizer.equalisation=smoothquant",
        "activation_scales=lsq",
        "activation_scales.iterations=5",
    ],
    "prompts": ["goal=prompts", "model=emoji_sd"],
    "train_denoiser": ["experiment=train_denoiser", "data.folder=data", *DENOISER, *few_steps("training")],
    "train_latent_denoiser": ["experiment=train_latent_denoiser", "data.folder=data", *AUTOENCODER, *LATENT]
    + [*few_steps("training"), *few_steps("autoencoder")],
    "train_feature_network": ["experiment=train_feature_network", "data.folder=data", *few_steps("training")]
    + ["training.network.widths=[4,4,8,8]"],
    "reference_statistics": ["experiment=reference_statistics", "data.folder=data"],
    "report": [*TINY, *FEW_CANDIDATES, "layers.images=8"],
}
"""The words of every job; the stages that several run are killed in the first of them."""
GOAL = [*TINY, "correction=ptqd"]
"""Words of the job of a stage that no other runs, beside its goal."""
UNCOUNTED = ("files.json", "log.txt")


def prepare(folder: Path) -> None:
    """Write a tiny DDPM with random weights, and 64 images of noise in two classes."""
    torch.manual_seed(SEED)
    blocks: dict[str, object] = {"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    blocks |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "norm_num_groups": 4}
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split, count in (("train", 64), ("test", 16)):
        cells = []
        for _ in range(count):
            encoded = io.BytesIO()
            Image.fromarray(torch.randint(256, (16, 16, 3)).byte().numpy()).save(encoded, "png")
            cells.append({"bytes": encoded.getvalue(), "path": None})
        table = pyarrow.table({"img": cells, "label": [i % 2 for i in range(count)]})
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


def fresh(folder: Path, name: str) -> Path:
    """A folder that sees the model and the images under the same names as every other."""
    made = folder / name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for shared in ("model", "data"):
        (made / shared).symlink_to(folder / shared)
    return made


def contents(folder: Path) -> Mapping[str, str]:
    """Hashes of every file of the store and the report, but for where the report comes from.

    Neither locks, nor how long a stage took, nor the logs of what was said and how a training went, nor the manifests,
    which hold its size.
    """
    outputs = folder / "outputs"
    files = (path for path in outputs.rglob("*") if path.is_file() and "log" not in path.parts)
    kept = (path for path in files if path.suffix not in (LOCKED, SECONDS) and path.name not in UNCOUNTED)
    return {str(path.relative_to(outputs)): hashlib.sha256(content(path)).hexdigest() for path in kept}


def content(path: Path) -> bytes:
    """The bytes of a file; those of a report without its provenance, which names the time."""
    if path.name != "report.json":
        return path.read_bytes()
    return json.dumps(json.loads(path.read_text()) | {"provenance": None}).encode()


def compared(folder: Path, expected: Mapping[str, str], ended_well: bool) -> dict[str, object]:
    """The columns of what a run that went on has left; a folder with other files is kept, as differs_<number>.

    Args:
        folder: of the run.
        expected: the hashes of all files without a kill.
        ended_well: whether it ended without an error.
    """
    found = contents(folder)
    identical = ended_well and found == expected
    if not identical:
        shutil.copytree(folder, unused(folder.with_name("differs")), symlinks=True)
    return {"files": len(found), "identical": identical}


def unused(path: Path) -> Path:
    """The path with the first number behind it that none has yet."""
    return next(place for number in itertools.count(1) if not (place := Path(f"{path}_{number}")).exists())


def artefacts(folder: Path) -> Mapping[str, Mapping[str, float]]:
    """The seconds that every artefact of a store took, by stage and signature."""
    seconds: dict[str, dict[str, float]] = {}
    for file in sorted((folder / "outputs" / "store").glob(f"*/*{SECONDS}")):
        seconds.setdefault(file.parent.name, {})[file.stem] = float(file.read_text())
    return seconds


def wait_for(folder: Path, stage: str, signature: str, alive: Callable[[], bool]) -> None:
    """Wait until an artefact is begun, or the processes that are to make it have ended."""
    place = folder / "outputs" / "store" / stage / signature
    while alive() and not (place.with_suffix(PARTIAL).is_dir() or place.is_dir()):
        time.sleep(0.001)


def under_way(folder: Path) -> Mapping[str, int]:
    """The stages whose artefacts are begun and not finished, as STAGE/SIGNATURE, and how many files each has so far."""
    begun = (path for path in folder.glob(f"outputs/store/*/*{PARTIAL}") if path.is_dir())
    return {f"{path.parent.name}/{path.stem}": sum(file.is_file() for file in path.rglob("*")) for path in begun}


def landed(folder: Path, stage: str, signature: str) -> dict[str, object]:
    """The columns of a kill in a folder: where it fell, whether where it was aimed, and the files that were left."""
    begun = under_way(folder)
    place = ", ".join(sorted(name.partition("/")[0] for name in begun)) or "between stages"
    return {"fell_in": place, "at_work": f"{stage}/{signature}" in begun, "files_left": sum(begun.values())}
