"""A UNet that attends to the text encoder's tokens of a caption: a Stable Diffusion of any size."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ptq_diffusion.stage.training.caption_tokenizer import caption_tokenizer, save_tokenizer
from ptq_diffusion.stage.training.conditioned_network import LatentNetwork
from ptq_diffusion.stage.training.stable_diffusion import save_stable_diffusion


class PromptedNetwork(LatentNetwork):
    """A `UNet2DConditionModel` and a `CLIPTextModel`, trained together; the null label is the empty prompt.

    Args:
        unet: the network, whose `cross_attention_dim` is the text encoder's width.
        layers: of the text encoder.
        heads: of its attention.
        merges: of the tokenizer, at most.
        length: of every prompt in tokens, start and end included.
        names: the captions, in the order of their labels.
    """

    tokens: Tensor

    def __init__(
        self, unet: UNet2DConditionModel, layers: int, heads: int, merges: int, length: int, names: Sequence[str]
    ) -> None:
        super().__init__()
        self.unet, self.null = unet, len(names)
        self.tokenizer = caption_tokenizer(names, merges, length)
        width = unet.config.cross_attention_dim
        config = CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.text_encoder = CLIPTextModel(config)
        padded = self.tokenizer(
            [*names, ""], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        self.register_buffer("tokens", padded.input_ids)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        prompts = self.text_encoder(self.tokens[labels])[0]
        output: Tensor = self.unet(x_t, t, encoder_hidden_states=prompts).sample
        return output

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    def begin_from(self, path: str) -> None:
        raise ValueError(
            "expected training.init_from.path=null of a network of prompts, whose text encoder and tokenizer are made "
            f"anew, got {path}; set it"
        )

    def check_beginning(self, path: str) -> None:
        self.begin_from(path)

    def save(self, out: Path, autoencoder: AutoencoderKL, scheduler: SchedulerMixin) -> None:
        """Write a `StableDiffusionPipeline` folder."""
        save_stable_diffusion(out, self.unet, autoencoder, scheduler, self.text_encoder, self.tokenizer)
        save_tokenizer(self.tokenizer, out / "tokenizer")
