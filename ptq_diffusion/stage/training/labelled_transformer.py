"""A diffusion transformer that reads class labels."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, SchedulerMixin
from torch import Tensor, nn

from ptq_diffusion.stage.training.conditioned_network import LatentNetwork


class LabelledTransformer(LatentNetwork):
    """A `DiTTransformer2DModel`; its last label, of which `DiTPipeline` knows that it is 1000, is "no class".

    Every block begins as the identity (adaLN-Zero; Peebles and Xie, ICCV 2023, arXiv 2212.09748).

    Args:
        transformer: the network, with `num_embeds_ada_norm` 1000 to be guided by `DiTPipeline`.
        names: of the classes, in the order of their labels.

    Raises:
        ValueError: more names than labels.
    """

    def __init__(self, transformer: DiTTransformer2DModel, names: Sequence[str]) -> None:
        super().__init__()
        self.null = int(transformer.config.num_embeds_ada_norm)
        if len(names) > self.null:
            raise ValueError(
                f"expected at most {self.null} classes, got {len(names)}; raise training.network.transformer."
                "num_embeds_ada_norm"
            )
        self.transformer, self.names = transformer, tuple(names)
        for block in transformer.transformer_blocks:
            _zero(block.norm1.linear)
            embedder = block.norm1.emb.class_embedder
            # Each block would leave out other labels in training, from the global seed.
            embedder.dropout_prob = 0.0
            # Labels of no class are never trained; zeros take no space in an archive.
            embedder.embedding_table.weight.data[len(names) : self.null] = 0
        for layer in (transformer.proj_out_1, transformer.proj_out_2):
            _zero(layer)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = self.transformer(x_t, timestep=t, class_labels=labels).sample
        return output

    @property
    def denoiser(self) -> DiTTransformer2DModel:
        return self.transformer

    def save(self, out: Path, autoencoder: AutoencoderKL, scheduler: SchedulerMixin) -> None:
        """Write a `DiTPipeline` folder, whose `model_index.json` names the classes.

        That pipeline samples with schedulers of betas alone; of flow matching the folder is read by `load_folder`.
        """
        pipeline = DiTPipeline(self.transformer.half(), autoencoder.half(), scheduler)
        pipeline.register_to_config(id2label={str(label): name for label, name in enumerate(self.names)})
        pipeline.save_pretrained(out, safe_serialization=True)


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
