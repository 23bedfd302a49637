"""Stage: train the classifier whose pooled last layer is the feature space of the metrics."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import seed_everything
from omegaconf import DictConfig
from torch.nn import functional as F

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.data import LabelledImages
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.feature.resnet9 import ResNet9
from ptq_diffusion.stage.training.feature_network_training import FeatureNetworkTraining
from ptq_diffusion.stage.training.resumable_fit import WarmupStableDecay, resumable_fit
from ptq_diffusion.stage.training.training_stream import AugmentedImages


class TrainFeatureNetwork(Stage):
    """A `ResNet9` folder with its test accuracy, trained on labelled images; resumes from its own checkpoint."""

    name = "train_feature_network"
    version = 1
    uses = ("data", "test_data", "training")
    scratch = ("checkpoint",)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {name: construct(cfg[name]).checksum() for name in ("data", "test_data")}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        training, begin = cfg.training, time.perf_counter()
        seed_everything(training.seed)
        module = FeatureNetworkTraining(
            network=construct(training.network).to(memory_format=torch.channels_last),
            optimizer=construct(training.optimizer),
            rate=WarmupStableDecay(training.steps, training.warmup, training.cooldown),
            label_smoothing=training.label_smoothing,
        )
        data, test = labelled(cfg.data), labelled(cfg.test_data)
        for images in (data, test):
            require_classes(images, module.network.num_classes)
        examples = AugmentedImages(data, construct(training.augmentation))
        start = resumable_fit(module, examples, training, out, shop.runtime)
        module.network.save(out)
        network = ResNet9.load(out)
        scores = accuracy_and_loss(network, test)
        facts = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "steps": training.steps,
            "epochs": training.steps * training.batch_size / len(data),
            "seed": training.seed,
            "checksum": network.checksum(),
        }
        write_json(out / "metrics.json", scores | facts)
        # The time differs between attempts, so it is kept out of metrics.json.
        write_json(out / "log" / f"from_{start}" / "time.json", {"seconds": time.perf_counter() - begin})


def labelled(node: DictConfig) -> LabelledImages:
    """The images of a data source that has labels.

    Raises:
        ValueError: the source has none.
    """
    data = construct(node).load()
    if data.labels is None:
        raise ValueError(f"expected labelled images, {node._target_} has no labels; set a label column")
    return data


def require_classes(data: LabelledImages, num_classes: int) -> None:
    """Refuse labels that the network has no class for.

    Raises:
        ValueError: a label is negative or too large.
    """
    assert data.labels is not None
    low, high = (int(edge) for edge in data.labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"expected labels of 0 to {num_classes - 1}, got {low} to {high}; set training.network.num_classes"
        )


@torch.inference_mode()
def accuracy_and_loss(network: ResNet9, test: LabelledImages) -> dict[str, float]:
    """The fraction of images classified rightly and the mean cross entropy in nats, over all images, in float32."""
    assert test.labels is not None
    logits = network.logits(network.features(test.images))
    accuracy = torch.eq(logits.argmax(1), test.labels).double().mean()
    return {"test_accuracy": accuracy.item(), "test_loss": F.cross_entropy(logits, test.labels).item()}
