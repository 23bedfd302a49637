"""The classifier score is the Inception Score's formula: torchmetrics' number, between 1 and the number of classes."""

import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from ptq_diffusion.metric import paired_classifier_score


def probabilities(count=60, classes=5, seed=0, scale=2.0):
    return (scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def score(rows, **options):
    return paired_classifier_score({"a": rows}, replicates=50, seed=0, **options).estimates["a"]


@pytest.mark.filterwarnings("ignore:std")  # of its single split
def test_equals_torchmetrics():
    incumbent = InceptionScore(feature=torch.nn.Identity(), splits=1)
    incumbent.update(probabilities().log())
    expected, _ = incumbent.compute()
    assert score(probabilities()).value == pytest.approx(expected.item(), rel=1e-5)


def test_sure_and_various_is_the_number_of_classes_and_anything_alike_is_one():
    assert score(torch.eye(5).repeat(4, 1)).value == pytest.approx(5)
    assert score(torch.eye(5)[[2] * 20]).value == pytest.approx(1)
    assert score(probabilities(1).repeat(20, 1)).value == pytest.approx(1)


def test_rises_with_certainty_and_ignores_order():
    found = [score(probabilities(scale=scale)).value for scale in (0.5, 1, 2, 4)]
    assert found == sorted(found)
    assert score(probabilities().flip(0)).value == pytest.approx(score(probabilities()).value, rel=1e-12)


def test_error_is_that_of_independent_repetitions():
    found = [score(probabilities(200, seed=seed)) for seed in range(40)]
    spread = torch.tensor([one.value for one in found]).std()
    assert 0.7 < torch.tensor([one.standard_error for one in found]).mean() / spread < 1.4
