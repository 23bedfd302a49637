"""The feature network's training goes on as if it had not been interrupted, and its stages leave what they promise."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from ptq_diffusion.data import LabelledImages
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric import FeatureMoments, ResNet9
from ptq_diffusion.stage.reference import ReferenceStatistics
from ptq_diffusion.stage.training.feature_network_training import FeatureNetworkTraining
from ptq_diffusion.stage.training.resumable_fit import WarmupStableDecay, resumable_fit
from ptq_diffusion.stage.training.train_feature_network import TrainFeatureNetwork, accuracy_and_loss
from ptq_diffusion.stage.training.training_stream import Augmentation, AugmentedImages

CONF = Path(__file__).parents[3] / "conf"
RUNTIME = Runtime("cpu", False)
SMALL = [
    "training.steps=6",
    "training.warmup=2",
    "training.cooldown=4",
    "training.batch_size=8",
    "training.checkpoint_every=3",
    "training.precision=32-true",
    "training.network.widths=[4,4,8,8]",
]


def two_colours(count, seed=0):
    """Dark images of class 0 and bright ones of class 1."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(60, (count, 3, 16, 16), generator=draw) + 150 * labels[:, None, None, None]
    return LabelledImages(images.byte(), labels)


def write_parquet(folder, split, data):
    cells = []
    for image in data.images:
        encoded = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(encoded, "png")
        cells.append({"bytes": encoded.getvalue(), "path": None})
    table = pyarrow.table({"img": cells, "label": data.labels.tolist()})
    pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def images_folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write_parquet(folder, "train", two_colours(32))
    write_parquet(folder, "test", two_colours(10, seed=1))
    return folder


def configured(experiment, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"experiment={experiment}", *overrides])


def trained(out, steps, until):
    """A network after `until` of `steps` steps; what `out` holds of an earlier part is not done again."""
    training = OmegaConf.create(
        {"steps": until, "batch_size": 8, "seed": 3, "precision": "32-true", "checkpoint_every": 4}
    )
    torch.manual_seed(0)
    module = FeatureNetworkTraining(
        ResNet9("tiny", [4, 4, 8, 8], 2),
        lambda parameters: torch.optim.SGD(parameters, 0.05, 0.9, nesterov=True),
        WarmupStableDecay(steps, 2, 4),
        0.1,
    )
    examples = AugmentedImages(two_colours(20), Augmentation(flip=True, shift=2))
    start = resumable_fit(module, examples, training, out, RUNTIME)
    return start, module.network


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path):
    _, whole = trained(tmp_path / "whole", 8, 8)
    trained(tmp_path / "parts", 8, 4)
    start, resumed = trained(tmp_path / "parts", 8, 8)
    assert start == 4
    assert resumed.checksum() == whole.checksum()


def test_a_resumed_training_keeps_the_length_it_is_asked_for(tmp_path):
    """The first part was to end after 8 steps; its decay must not come back with its checkpoint."""
    _, whole = trained(tmp_path / "whole", 12, 12)
    trained(tmp_path / "parts", 8, 4)
    start, lengthened = trained(tmp_path / "parts", 12, 12)
    assert start == 4
    assert lengthened.checksum() == whole.checksum()


def test_training_learns_what_can_be_learnt(tmp_path):
    _, network = trained(tmp_path, 32, 32)
    assert accuracy_and_loss(network.eval(), two_colours(20, seed=5))["test_accuracy"] == 1


def test_stages_make_a_network_and_its_reference(tmp_path, images_folder):
    store = Store(tmp_path / "store", Workshop(RUNTIME))
    made = store.obtain(
        TrainFeatureNetwork, configured("train_feature_network", f"data.folder={images_folder}", *SMALL)
    )
    metrics = json.loads((made / "metrics.json").read_text())
    assert metrics["steps"] == 6 and metrics["epochs"] == 1.5 and 0 <= metrics["test_accuracy"] <= 1
    assert (made / "log" / "from_0" / "metrics.csv").is_file() and not (made / "checkpoint").exists()
    network = ResNet9.load(made)
    assert metrics["checksum"] == network.checksum()

    overrides = [f"data.folder={images_folder}", f"feature.extractor.path={made}"]
    folder = store.obtain(ReferenceStatistics, configured("reference_statistics", *overrides))
    moments = FeatureMoments.load(folder / "reference.safetensors")
    assert moments.count == 32
    expected = FeatureMoments.of(network.features(two_colours(32).images), network.checksum())
    assert torch.allclose(moments.covariance, expected.covariance) and moments.extractor == expected.extractor


def test_images_without_labels_are_refused(tmp_path, images_folder):
    cfg = configured("train_feature_network", f"data.folder={images_folder}", "data.label_column=null", *SMALL)
    with pytest.raises(ValueError, match="labelled images"):
        Store(tmp_path / "store", Workshop(RUNTIME)).obtain(TrainFeatureNetwork, cfg)
