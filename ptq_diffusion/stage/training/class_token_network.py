"""A UNet that attends to one token, its class: the layout of the class-conditional latent diffusion of ImageNet."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.model.class_embedder import class_table_shape
from ptq_diffusion.model.folder import find_files
from ptq_diffusion.stage.training.conditioned_network import LatentNetwork
from ptq_diffusion.stage.training.initialisation import take_weights
from ptq_diffusion.stage.training.stable_diffusion import save_stable_diffusion


class ClassTokenNetwork(LatentNetwork):
    """A `UNet2DConditionModel` whose prompt is one row of a table, (classes + 1, D); the last row is "no class".

    Rombach et al., CVPR 2022, arXiv 2112.10752.

    Args:
        unet: the network, whose `cross_attention_dim` is D.
        names: of the classes, in the order of their labels.
    """

    def __init__(self, unet: UNet2DConditionModel, names: Sequence[str]) -> None:
        super().__init__()
        self.unet, self.null = unet, len(names)
        self.embedder = nn.Embedding(len(names) + 1, unet.config.cross_attention_dim)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = self.unet(x_t, t, encoder_hidden_states=self.embedder(labels)[:, None]).sample
        return output

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    def begin_from(self, path: str) -> None:
        table = take_weights(self.unet, path).class_table
        self._require_table(None if table is None else tuple(table.shape), path)
        self.embedder.load_state_dict({"weight": table})

    def check_beginning(self, path: str) -> None:
        super().check_beginning(path)
        component = find_files(path).class_embedder
        self._require_table(None if component is None else class_table_shape(component), path)

    def _require_table(self, shape: tuple[int, ...] | None, path: str) -> None:
        """Refuse embeddings of other classes than those that are trained on, or none."""
        if shape != tuple(self.embedder.weight.shape):
            found = "none" if shape is None else f"a table of {shape}"
            raise ValueError(
                f"expected embeddings of {self.null} classes in {path}, got {found}; give another "
                "training.init_from.path"
            )

    def save(self, out: Path, autoencoder: AutoencoderKL, scheduler: SchedulerMixin) -> None:
        """Write a `StableDiffusionPipeline` folder without texts, and the table beside in `class_embedder/`.

        `StableDiffusionPipeline.from_pretrained(out, text_encoder=None, tokenizer=None)` reads it.
        """
        save_stable_diffusion(out, self.unet, autoencoder, scheduler)
        folder, weight = out / "class_embedder", self.embedder.weight.detach()
        folder.mkdir(exist_ok=True)
        sizes = {"classes": len(weight) - 1, "dim": weight.shape[1]}
        write_json(folder / "config.json", {"_class_name": "ClassEmbedder"} | sizes)
        write_tensors(folder / "diffusion_pytorch_model.safetensors", {"weight": weight.to(torch.float16)})
