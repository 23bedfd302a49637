"""Stage: prompts encoded once, by the text encoders of the model's pipeline, which nothing behind it needs."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.data import Prompts
from ptq_diffusion.engine.conditions import EncodedPrompts
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import PROMPTS, Workshop
from ptq_diffusion.model.text import encode_prompts, text_checksum


class EncodePrompts(Stage):
    """The files of an `EncodedPrompts`: a row for every distinct prompt, and that of the negative prompt."""

    name = PROMPTS
    version = 1
    uses = ("model", "condition.source", "condition.negative_prompt")

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        return cfg.condition.source is not None and isinstance(construct(cfg.condition.source), Prompts)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {
            "prompts": construct(cfg.condition.source).checksum(),
            "encoders": text_checksum(cfg.model.path),
        }

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        texts = construct(cfg.condition.source).texts()
        distinct = list(dict.fromkeys(texts))
        places = {text: place for place, text in enumerate(distinct)}
        rows, negative = encode_prompts(cfg.model.path, distinct, cfg.condition.negative_prompt)
        EncodedPrompts(rows, [places[text] for text in texts], negative).save(out)
