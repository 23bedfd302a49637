"""Corrected networks that are called as the transformers of flow-matching pipelines: SD3, Flux, Sana."""

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from ptq_diffusion.correction.pipeline.corrected_network import CorrectedNetwork
from ptq_diffusion.model import Condition
from ptq_diffusion.model.family.flux import PATCH, TIMES, packed, unpacked


class FlowNetwork(CorrectedNetwork, ModelMixin):
    """A corrected network that is called as a transformer of flow matching is.

    diffusers loads a class only from a module that names one of its own bases, here `ModelMixin`.
    """


class CorrectedSD3(FlowNetwork):
    """The transformer of a `StableDiffusion3Pipeline`."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        return_dict: bool = True,
        **options: object,
    ) -> UNet2DOutput | tuple[Tensor]:
        """m~, (B, C, H, W), as `.sample` or else in a tuple.

        Args:
            hidden_states: x_t, (B, C, H, W).
            encoder_hidden_states: embeddings of prompts, (B, L, D).
            pooled_projections: of whole prompts, (B, D).
            timestep: t, (B,), one for all.
            return_dict: which of the two.
            options: others of the stock network, each None.

        Raises:
            ValueError: see `CorrectedNetwork.answer`.
        """
        condition = Condition(embeddings=encoder_hidden_states, pooled=pooled_projections)
        return self.returned(self.answer(hidden_states, timestep, condition, options), return_dict)


class CorrectedSana(FlowNetwork):
    """The transformer of a `SanaPipeline`, which tells it times as they are: the network scales them itself."""

    def described(self) -> dict[str, Any]:
        return super().described() | {"timestep_scale": 1.0}

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
        return_dict: bool = True,
        **options: object,
    ) -> UNet2DOutput | tuple[Tensor]:
        """m~, (B, C, H, W), as `.sample` or else in a tuple.

        Args:
            hidden_states: x_t, (B, C, H, W).
            encoder_hidden_states: embeddings of prompts, (B, L, D).
            timestep: t, (B,), one for all.
            encoder_attention_mask: which of the L tokens count, (B, L).
            return_dict: which of the two.
            options: others of the stock network, each None.

        Raises:
            ValueError: see `CorrectedNetwork.answer`.
        """
        condition = Condition(embeddings=encoder_hidden_states, mask=encoder_attention_mask)
        return self.returned(self.answer(hidden_states, timestep, condition, options), return_dict)


class CorrectedFlux(FlowNetwork, CacheMixin):
    """The transformer of a `FluxPipeline`, which packs a state into tokens of 2 x 2 latent pixels."""

    def described(self) -> dict[str, Any]:
        channels = PATCH**2 * self.quantized.shape[0]
        return super().described() | {"in_channels": channels, "out_channels": channels}

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        guidance: Tensor | None = None,
        txt_ids: Tensor | None = None,  # noqa: ARG002
        return_dict: bool = True,
        **options: object,
    ) -> UNet2DOutput | tuple[Tensor]:
        """m~ of tokens, (B, H/2 x W/2, 4 C), as `.sample` or else in a tuple.

        Args:
            hidden_states: x_t as tokens, (B, H/2 x W/2, 4 C).
            encoder_hidden_states: embeddings of prompts, (B, L, D).
            pooled_projections: of whole prompts, (B, D).
            timestep: a thousandth of t, (B,), one for all.
            img_ids: the place (0, row, column) of every token, row by row.
            guidance: of a network that embeds it, (B,).
            txt_ids: places of the prompt's tokens, which are 0.
            return_dict: which of the two.
            options: others of the stock network, each None or empty.

        Raises:
            ValueError: see `CorrectedNetwork.answer`; or the guidance is another than the correction was fitted for.
        """
        rows, columns = (int(places) + 1 for places in img_ids[:, 1:].amax(0).tolist())
        # A thousandth in float32 and back may be another number than t.
        times = torch.tensor([self.nearest(TIMES * t) for t in timestep.tolist()])
        self.require_embedded(guidance)
        condition = Condition(embeddings=encoder_hidden_states, pooled=pooled_projections, scale=guidance)
        answer = self.answer(unpacked(hidden_states, (rows, columns)), times, condition, options)
        return self.returned(packed(answer), return_dict)
