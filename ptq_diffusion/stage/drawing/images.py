"""Sampling to the end, chunk by chunk."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk, ChunkWork
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.model import Condition, Decoder, Denoiser
from ptq_diffusion.sampler import Step, Table, Visit, sample

Predictor = Callable[[Tensor, Step], Tensor]
"""From (x_t, step) to the output that is used."""


class DrawImages(ChunkWork):
    """Sampling to the end, which gives images as bytes.

    Args:
        model: what is sampled, float or quantized.
        steps: the table.
        conditions: of the samples.
        decoder: from latents to images.
        predictor: for each chunk and its condition, from (x_t, step) to the output that is used.
        sigma: the noise scale that is used at a step, from it and a learned variance.
    """

    def __init__(
        self,
        model: Denoiser,
        steps: Table,
        conditions: ConditionSource,
        decoder: Decoder,
        predictor: Callable[[Chunk, Condition | None], Predictor],
        sigma: Callable[[Step, Tensor | None], float | Tensor],
    ) -> None:
        super().__init__()
        self.model, self.steps, self.conditions, self.decoder = model, steps, conditions, decoder
        self.predictor, self.sigma = predictor, sigma

    @classmethod
    def of(cls, model: Denoiser, steps: Table, conditions: ConditionSource, decoder: Decoder) -> "DrawImages":
        """The uncorrected sampling of a model."""

        def predictor(_: Chunk, condition: Condition | None) -> Predictor:
            return lambda x_t, step: model.predict(x_t, step, condition).with_variance

        return cls(model, steps, conditions, decoder, predictor, Step.spread)

    def visits(self, chunk: Chunk, device: torch.device) -> Iterator[Visit]:
        """The steps of sampling a chunk, one after the other."""
        predict = self.predictor(chunk, chunk.condition(self.conditions, device))
        return sample(predict, self.steps, chunk.noise(self.model.shape), self.sigma, device)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        *_, last = self.visits(chunk, device)
        return {"images": to_bytes(self.decoder.decode(last.x_s))[: chunk.count]}


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, rounded to nearest."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
