"""Sampling to the end, chunk by chunk."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk, ChunkWork
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Step, Table, sample


class DrawImages(ChunkWork):
    """Sampling to the end, which gives images as bytes.

    Args:
        model: what is sampled, float or quantized.
        steps: the table.
        predictor: for each chunk, from (x_t, step) to the output that is used.
        sigma: the noise scale that is used at a step.
    """

    def __init__(
        self,
        model: Denoiser,
        steps: Table,
        predictor: Callable[[Chunk], Callable[[Tensor, Step], Tensor]],
        sigma: Callable[[Step], float],
    ) -> None:
        super().__init__()
        self.model, self.steps, self.predictor, self.sigma = model, steps, predictor, sigma

    @classmethod
    def of(cls, model: Denoiser, steps: Table) -> "DrawImages":
        """The uncorrected sampling of a model."""
        return cls(model, steps, lambda _: lambda x_t, step: model.predict(x_t, step).m, lambda step: step.sigma)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        *_, last = sample(self.predictor(chunk), self.steps, chunk.noise(self.model.shape), self.sigma, device)
        return {"images": to_bytes(self.model.decode(last.x_s))[: chunk.count]}


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, rounded to nearest."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
