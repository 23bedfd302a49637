"""Which direction of a metric is better is told by the reports, whatever has become of its class since."""

from pathlib import Path

import pytest

from ptq_diffusion.report.sweep.quantity import quantity_of
from ptq_diffusion.report.sweep.runs import Run
from tests.metric.metrics import METRICS

OLD = {"metric.one._target_": "ptq_diffusion.metric.Renamed", "metric.two._target_": "elsewhere.Sharpness"}


def run_with(name, **told):
    row = {name: 1.0, f"{name}_se": 0.1}
    return Run(Path("run"), "run", OLD, "ptqd", {"rows": [row]} | told, "")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_reports_of_earlier_versions_have_the_direction_of_todays_metrics(metric):
    assert quantity_of([run_with(metric.name)], metric.name).higher_is_better == metric.higher_is_better


def test_a_report_tells_the_direction_of_a_metric_that_this_version_has_not():
    told = run_with("sharpness", higher_is_better=["recall", "sharpness"])
    assert quantity_of([run_with("sharpness"), told], "sharpness").higher_is_better
    assert not quantity_of([run_with("blur", higher_is_better=["sharpness"])], "blur").higher_is_better


def test_a_metric_of_no_known_direction_is_refused():
    with pytest.raises(ValueError, match="whether more is better, got sharpness.*make one of the reports again"):
        quantity_of([run_with("sharpness")], "sharpness")
