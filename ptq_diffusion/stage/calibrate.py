"""Stage: the range of every quantizer, over all steps of float sampling."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import NetworkQuantizers, observing
from ptq_diffusion.sampler import Step
from ptq_diffusion.stage.trajectories import Trajectories


class States(IterableDataset[tuple[int, Tensor]]):
    """(i, x_t), the index of a step and its states, of every chunk and step; one chunk is in memory at a time."""

    def __init__(self, folder: Path, steps: Sequence[Step]) -> None:
        self.folder, self.table = folder, steps

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.safetensors"))) * len(self.table)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for chunk in read_chunks(self.folder):
            yield from enumerate(chunk["states"])


class Calibration(L.LightningModule):
    """Float forwards under observation."""

    def __init__(self, model: Denoiser, quantizers: NetworkQuantizers, table: Sequence[Step]) -> None:
        super().__init__()
        self.model, self.quantizers, self.table = model, quantizers, table

    def predict_step(self, batch: tuple[int, Tensor], _: int) -> None:
        i, x_t = batch
        with observing(self.model.network, self.quantizers):
            self.model.predict(x_t, self.table[i])


class Calibrate(ModelStage):
    """Scales and zero points of every quantizer, `quantizers.safetensors`."""

    name = "calibrate"
    version = 1
    needs = (Trajectories,)
    uses = ("model", "sampler", "quantizer", "bitwidth")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model = shop.model(cfg)
        quantizers = shop.quantizers(cfg)
        quantizers.observe_weights(model.network)
        table = shop.table(cfg)
        states = States(inputs[Trajectories.name] / "chunks", table)
        trainer = shop.runtime.trainer(out, self.title)
        trainer.predict(
            Calibration(model, quantizers, table), DataLoader(states, batch_size=None), return_predictions=False
        )
        quantizers.freeze()
        quantizers.save(out / "quantizers.safetensors")
