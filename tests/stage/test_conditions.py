"""A class-conditional network with guidance through whole experiments."""

import pytest
import torch

from ptq_diffusion.engine.chunks import read_chunks

CLASSES, NO_CLASS = 4, 3


@pytest.fixture
def guided(tiny_model_folder):
    """Overrides of a guided experiment."""
    return [
        f"model.path={tiny_model_folder(classes=CLASSES)}",
        "condition=labels",
        f"condition.source.no_class={NO_CLASS}",
        "condition.guidance.scale=2",
    ]


def images_of(path):
    return torch.cat([chunk["images"] for chunk in read_chunks(path / "chunks")])


def test_a_whole_experiment(report, guided):
    found, _ = report(
        *guided,
        "correction=rescaled_readout_matched",
        "noise.images=16",
        "bitwidth.saving=12",
        "bitwidth=budget",
        "sensitivity.images=4",
    )
    plain, _ = report(*guided, "condition.guidance.scale=1")
    assert [row["variant"] for row in found["rows"]] == ["full_precision", "quantized", "corrected"]
    assert found["rows"][0]["bops_per_image"] == 2 * plain["rows"][0]["bops_per_image"]
