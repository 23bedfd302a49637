"""Sampling against the stock pipelines of guided latent models: python -m experiments.speed.families THREADS [NAME].

A UNet and a transformer of classes and a text-to-image model, with their decoders. Prompts are encoded beforehand on
both sides. `cifar10_dit_flow` has no stock pipeline that samples it.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiTPipeline, StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from experiments.speed.measure import CPU, WALL, measured, ratio
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.chunks import Chunk, chunks
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition
from ptq_diffusion.model.loading import MODELS
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples

BATCH, STEPS, SCALE = 16, 5, 2.5
OPTIONS = {"guidance_scale": SCALE, "num_inference_steps": STEPS, "output_type": "np"}
OURS, AGAIN, STOCK = "ours", "ours, again", "the stock pipeline"
GOALS = ((OURS, STOCK, "1.0 or more"), (AGAIN, OURS, "1: what noise is left"))
Sampling = Callable[[], object]


def by_class_tokens(folder: Path, condition: Condition, _: Condition | None) -> Sampling:
    """Of a UNet that reads a token of each class in place of a prompt; the last token stands for no class."""
    table = load_file(folder / "class_embedder" / "diffusion_pytorch_model.safetensors")["weight"].float()
    assert condition.labels is not None
    return _stable_diffusion(folder, table[condition.labels, None], table[-1:, None].expand(BATCH, -1, -1))


def by_prompts(folder: Path, condition: Condition, null: Condition | None) -> Sampling:
    """Of a text-to-image model."""
    assert condition.embeddings is not None and null is not None and null.embeddings is not None
    return _stable_diffusion(folder, condition.embeddings, null.embeddings.expand(BATCH, -1, -1))


def by_labels(folder: Path, condition: Condition, _: Condition | None) -> Sampling:
    """Of a transformer of class labels."""
    assert condition.labels is not None
    stock, labels = DiTPipeline.from_pretrained(folder), condition.labels.tolist()
    stock.set_progress_bar_config(disable=True)
    return partial(stock, labels, **OPTIONS)


def _stable_diffusion(folder: Path, embeddings: Tensor, negative: Tensor) -> Sampling:
    stock = StableDiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    stock.set_progress_bar_config(disable=True)
    return partial(stock, prompt_embeds=embeddings, negative_prompt_embeds=negative, **OPTIONS)


STOCK_SAMPLING: Mapping[str, Callable[[Path, Condition, Condition | None], Sampling]] = {
    "cifar10_ldm": by_class_tokens,
    "cifar10_dit": by_labels,
    "emoji_sd": by_prompts,
}
"""From the folder of a bundled model, the conditions of the samples and the null condition to its stock sampling."""


def contenders(name: str) -> dict[str, Sampling]:
    """Ways to draw BATCH images in STEPS steps, each with its noise, its decoder and its conversion of the result."""
    words = [f"model={name}", f"condition.guidance.scale={SCALE}", f"sampler.steps={STEPS}", "sampler.eta=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=words)
    shop = Workshop(Runtime("cpu", progress=False))
    with TemporaryDirectory() as outputs:
        prompts = Store(Path(outputs), shop).obtain(EncodePrompts, cfg) if EncodePrompts.serves(cfg) else None
        work = FullPrecisionSamples().work(cfg, {EncodePrompts.name: prompts} if prompts else {}, shop)
    (chunk,) = chunks("images", list(cfg.seeds)[:1], BATCH, BATCH)
    condition, null = chunk.condition(work.conditions), work.conditions.null()
    assert condition is not None
    stock = STOCK_SAMPLING[name](MODELS.path(f"bundled:{name}"), condition, null)
    ours = partial(_drawn, work, chunk)
    return {OURS: ours, STOCK: stock, AGAIN: ours}


def _drawn(work: DrawImages, chunk: Chunk) -> dict[str, Tensor]:
    return work(chunk, torch.device("cpu"))


def main() -> None:
    """Print the ratios of each model by both clocks."""
    threads, *names = sys.argv[1:]
    quiet_libraries()
    keep_freed_memory()
    torch.set_num_threads(int(threads))
    table = Table(title=f"speed, batch {BATCH}, {STEPS} steps, guidance {SCALE}, {threads} threads")
    for heading in ("model", "", "against", "clock", "ratio", "quartiles", "goal"):
        table.add_column(heading)
    for name in names or STOCK_SAMPLING:
        with torch.inference_mode():
            times = measured(contenders(name))
        for goal in GOALS:
            for clock in (CPU, WALL):
                row = ratio(times, clock, *goal)
                found = f"{row.median:.3f}", f"{row.low:.3f} .. {row.high:.3f}"
                table.add_row(name, row.what, row.against, clock, *found, row.goal)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
