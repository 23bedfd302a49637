"""What every metric of conf/metric promises, with real images and without, in a space that has all features."""

from dataclasses import replace

import pytest
import torch

from ptq_diffusion.main import CONF
from ptq_diffusion.metric import FLOAT, Evidence, Gathering, Likeness, NoReference, Pixels, ResNet9, Settings, judge
from tests.metric.metrics import METRICS, Textures, blurred, judged, textures

SETTINGS = Settings(replicates=10, seed=0, neighbours=3, seeds=[0, 1])
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


NOT_DEFAULT = ["clip_score"]  # reads the folder of a network


def test_the_default_experiment_takes_every_metric_by_its_name():
    files = sorted(path.stem for path in (CONF / "metric").glob("*.yaml"))
    assert sorted([*(metric.name for metric in METRICS), *NOT_DEFAULT]) == files


@pytest.fixture(scope="module")
def network():
    return ResNet9.from_folder("bundled:cifar10net")


@pytest.fixture(scope="module", params=[Textures(), NoReference()], ids=["real images", "no real images"])
def evidence(request, network):
    images = textures(40, seed=0)
    images = {FLOAT: images, "mild": blurred(images, 4), "strong": blurred(images, 16)}
    gathering = Gathering(network, METRICS)
    gathering.add(images)
    real = request.param.statistics(network)
    return Evidence(gathering.features(), gathering.scores(), real, network.checksum(), SETTINGS)


@every_metric
def test_a_variant_has_the_number_that_it_has_beside_any_other(metric, evidence):
    """Errors too, bit for bit: a variant is added to a report without a change of the others."""
    whole = metric.paired(evidence)
    pair = ("strong", FLOAT)
    scores = {name: {variant: rows[variant] for variant in pair} for name, rows in evidence.scores.items()}
    few = replace(evidence, features={variant: evidence.features[variant] for variant in pair}, scores=scores)
    part = metric.paired(few)
    for variant in pair:
        assert part.estimates[variant] == whole.estimates[variant]
    assert part.differences["strong", FLOAT] == whole.differences[FLOAT, "strong"].reversed


@every_metric
def test_what_is_measured_to_float_has_no_error_for_the_float_variant(metric, evidence):
    estimate = metric.paired(evidence).estimates[FLOAT]
    if metric.to_float:
        assert estimate.standard_error == pytest.approx(0, abs=1e-6)
        assert isinstance(metric, Likeness) or estimate.value == pytest.approx(0, abs=1e-6)
    elif evidence.real is not None:
        assert estimate.standard_error > 0


@every_metric
def test_a_likeness_to_float_depends_on_no_real_image(metric, evidence, network):
    other = replace(evidence, real=None if evidence.real else Textures().statistics(network))
    equal = metric.paired(evidence).estimates == metric.paired(other).estimates
    assert equal == (metric.to_float or metric.name == "classifier_score")


@every_metric
def test_it_is_taken_exactly_where_the_features_that_it_needs_are_there(metric, network):
    images = {FLOAT: textures(20, seed=0), "other": textures(20, seed=2)}
    for extractor, kinds in ((network, {"vectors", "spatial", "probabilities"}), (Pixels(3, 4), {"vectors"})):
        row = judged(images, extractor, NoReference(), [metric], SETTINGS).rows["other"]
        assert set(row) == {metric.name, f"{metric.name}_se"}
        assert (row[metric.name] is not None) == (set(metric.needs) <= kinds)


def test_no_metric_has_an_influence_on_the_numbers_of_another(network):
    images = {FLOAT: textures(20, seed=0), "other": textures(20, seed=2)}
    together = judged(images, network, NoReference(), METRICS, SETTINGS)
    reversed_ = judged(images, network, NoReference(), METRICS[::-1], SETTINGS)
    alone = [judged(images, network, NoReference(), [metric], SETTINGS) for metric in METRICS]
    for variant in images:
        assert together.rows[variant] == reversed_.rows[variant]
        assert together.rows[variant] == {name: x for one in alone for name, x in one.rows[variant].items()}
    assert together.paired == [pair for one in alone for pair in one.paired]
    assert {together.protocol_id} == {one.protocol_id for one in alone}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_no_features_are_held_that_no_metric_reads(metric, network):
    """But vectors, by which variants of different runs are compared."""
    described = Gathering(network, [metric]).described({FLOAT: textures(2, seed=0)}, 0)
    assert described.features[FLOAT].tensors().keys() == {"vectors", *metric.needs}


def test_images_that_come_in_batches_are_judged_as_together(network):
    """In batches of any size: to float rounding, by which the feature network knows how many it is asked together."""
    images = {FLOAT: textures(20, seed=0), "other": blurred(textures(20, seed=0), 4)}
    whole = judged(images, network, Textures(), METRICS, SETTINGS)
    gathering = Gathering(network, METRICS)
    for start in range(0, 20, 7):
        gathering.add({variant: batch[start : start + 7] for variant, batch in images.items()})
    parts = judge(gathering, Textures().statistics(network), "textures", SETTINGS)
    assert parts.protocol_id == whole.protocol_id
    for variant in images:
        for name, number in whole.rows[variant].items():
            same = number is None or pytest.approx(number, rel=1e-4, abs=1e-6)
            assert parts.rows[variant][name] == (None if number is None else same), name


def test_scores_become_float64_on_the_processor_alone(network, monkeypatch):
    """Apple's devices have no float64."""

    class OfDevice:
        def __init__(self, scores):
            self.cpu = lambda: scores

    score = Gathering._score
    monkeypatch.setattr(Gathering, "_score", lambda *words: OfDevice(score(*words)))
    images = {FLOAT: textures(2, seed=0)}
    described = Gathering(network, METRICS).described(images, 0)
    assert {rows[FLOAT].dtype for rows in described.scores.values()} == {torch.float64}
