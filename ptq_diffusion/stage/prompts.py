"""Stage: prompts encoded once, by the text encoders of the model's pipeline, which nothing behind it needs."""

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.data import Prompts
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, run_chunks
from ptq_diffusion.engine.conditions import ENCODED, save_order, stored_prompts
from ptq_diffusion.engine.factory import construct, names_kind
from ptq_diffusion.engine.memory.lending import lend_blocks
from ptq_diffusion.engine.runtime import BY_BLOCK
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import PROMPTS, Workshop
from ptq_diffusion.model.text.encoders import AT_ONCE, TextEncoders
from ptq_diffusion.model.text.files import text_checksum


class EncodeTexts(ChunkWork):
    """Encodes distinct prompts, and with the first of them the negative prompt.

    Args:
        encoders: of the model.
        texts: the prompts.
        negative: the text to guide away from, which may be empty.
    """

    def __init__(self, encoders: TextEncoders, texts: Sequence[str], negative: str) -> None:
        super().__init__()
        self.encoders, self.texts, self.negative = encoders, texts, negative

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        texts = self.texts[chunk.first : chunk.first + chunk.count]
        if chunk.first > 0:
            return stored_prompts(self.encoders.rows(texts, device))
        return stored_prompts(*self.encoders.rows_and_negative(texts, self.negative, device))


class EncodePrompts(Stage):
    """The files of an `EncodedPrompts`: a row for every distinct prompt, and that of the negative prompt."""

    name = PROMPTS
    version = 2
    uses = ("model", "condition.source", "condition.negative_prompt")

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        return cfg.condition.source is not None and names_kind(cfg.condition.source, Prompts)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {
            "prompts": construct(cfg.condition.source).checksum(),
            "encoders": text_checksum(cfg.model.path),
        }

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        texts = construct(cfg.condition.source).texts()
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        batches = chunks(PROMPTS, [0], len(places), AT_ONCE)
        run_chunks(partial(self.work, cfg, list(places)), batches, out / ENCODED, shop, self.title, PROMPTS)
        # Text encoders may be larger than the network, for which they make room.
        gc.collect()
        save_order(out, [places[text] for text in texts], AT_ONCE)

    def work(self, cfg: DictConfig, distinct: Sequence[str], shop: Workshop) -> EncodeTexts:
        """The work of every device, for these prompts."""
        encoders = TextEncoders(cfg.model.path)
        if shop.runtime.offload == BY_BLOCK:
            lend_blocks(encoders, encoders.blocks())
        return EncodeTexts(encoders, distinct, cfg.condition.negative_prompt)
