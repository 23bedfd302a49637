"""What is said of a correction over all cells follows from its lines."""

import json
from dataclasses import replace

import pytest

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.collect import collect
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, Line
from ptq_diffusion.report.sweep.verdict import cells_of, verdicts
from tests.report.sweep.run_folders import EXAMPLE, of_seeds, run_like

FLOAT, QUANTIZED = 2.0, 6.0


def lines(gains, error=0.01, loss_error=0.01):
    """A float model and, by correction, the change of FID in each cell."""
    loss = Interval(QUANTIZED - FLOAT, loss_error, None)
    found = [Line({}, FULL_PRECISION, "run", {"fid": FLOAT})]
    for name, by_cell in gains.items():
        for cell, gain in enumerate(by_cell):
            values = {"fid": QUANTIZED + gain}
            found.append(Line({"eta": str(cell)}, name, name, values, Interval(gain, error, None), loss))
    return found


def test_shares_and_firsts_by_hand():
    found = {v.correction: v for v in verdicts(lines({"good": [-4.0, -2.0, -3.0], "some": [-1.0, -2.5], "bad": [1.0]}))}
    assert list(found) == ["good", "some", "none", "bad"]
    assert [(v.cells, v.first, v.harmless) for v in found.values()] == [(3, 2, 3), (2, 1, 2), (3, 0, None), (1, 0, 0)]
    assert found["good"].recovered == pytest.approx((1.0, 0.5, 0.75))
    assert found["bad"].recovered == pytest.approx((-0.25,))


def test_no_share_is_said_of_a_loss_within_its_errors():
    """4 +- 3 may be 0, of which a share means nothing."""
    (found, _) = verdicts(lines({"good": [-4.0]}, loss_error=3.0))
    assert found.recovered == () and "no loss shown" in cells_of(found)
    (found, none) = verdicts(lines({"good": [-4.0]}, loss_error=1.0))
    assert "100%" in cells_of(found) and not any("loss" in cell for cell in cells_of(none))
    shown, unclear = (lines({"good": [gain]}, loss_error=error)[1] for gain, error in ((-4.0, 1.0), (-9.0, 3.0)))
    (found, _) = verdicts([shown, replace(unclear, levels={"eta": "1"})])
    assert "100% in 1" in cells_of(found)


def harmless(gains, error):
    """In how many cells a correction of these gains is called so."""
    return {v.correction: v.harmless for v in verdicts(lines({"a": gains}, error))}["a"]


def test_what_may_cost_two_percent_is_not_called_harmless():
    """0.12 is 2 % of 6: within the interval, or below its end."""
    assert harmless([0.05], error=0.1) == 0
    assert harmless([0.05], error=0.01) == 1
    # Alone certain enough, p = 0.04, but not as the less certain of two.
    assert harmless([0.12 - 1.75 * 0.05], error=0.05) == 1
    assert harmless([0.12 - 1.75 * 0.05] * 2, error=0.05) == 0


def test_a_correction_that_harms_every_cell_is_never_the_lowest():
    found = {v.correction: v.first for v in verdicts(lines({"bad": [0.5, 1.0, 2.0], "mixed": [1.0, -1.0, 3.0]}))}
    assert found == {"none": 2, "mixed": 1, "bad": 0}
    assert [v.correction for v in verdicts(lines({"bad": [0.5, 1.0]}))] == ["none", "bad"]


def test_a_tie_is_shared():
    """As `auto` ties with the candidate that it chose."""
    found = {v.correction: v.first for v in verdicts(lines({"auto": [-2.0, -1.0], "own": [-2.0, -3.0]}))}
    assert found == {"auto": 1, "own": 2, "none": 0}
    found = {v.correction: v.first for v in verdicts(lines({"auto": [0.0], "own": [1.0]}))}
    assert found == {"auto": 1, "own": 0, "none": 1}, "auto chose none"


def test_a_cell_that_was_run_twice_counts_twice_in_any_order():
    own, other = (lines({"own": [gain]})[1] for gain in (-3.0, 2.0))
    for rows in ([own, other], [other, own]):
        found, _ = verdicts(rows)
        assert (found.cells, found.first, found.harmless) == (2, 1, 1)


def test_nothing_measured_says_nothing():
    assert verdicts([]) == [] and verdicts(lines({})) == []


def shares(folder, metric):
    """What the runs of a folder regain of a metric, by cell."""
    (sheet,) = collect([folder], metric=metric).sheets
    (found,) = (one for one in verdicts(sheet.lines, sheet.quantity) if one.correction == "ptqd")
    return found.recovered


@pytest.mark.parametrize("metric", ["fid", "kid", "fid_to_fp", "precision"])
def test_a_share_of_runs_is_that_of_their_rows(tmp_path, metric):
    """FID to float, of which a report has no pair with the float model, and precision, of which more is better, too."""
    content = json.loads((EXAMPLE / "report.json").read_text())
    full, quantized, corrected = (row[metric] for row in content["rows"])
    run_like(tmp_path)
    assert shares(tmp_path, metric) == pytest.approx([(quantized - corrected) / (quantized - full)])


def test_a_metric_that_a_float_model_has_not_says_nothing_of_a_loss(tmp_path):
    run_like(tmp_path)
    (sheet,) = collect([tmp_path], metric="psnr_to_fp").sheets
    assert shares(tmp_path, "psnr_to_fp") is None and "no loss shown" not in sheet.markdown()


def test_the_share_of_pooled_runs_is_that_of_their_mean(tmp_path):
    single, pooled = tmp_path / "single", tmp_path / "pooled"
    run_like(single)
    for seeds in ((0, 1), (2, 3)):
        of_seeds(run_like(pooled / str(seeds[0])), seeds, 4.0)
    assert shares(pooled, "kid") == pytest.approx(shares(single, "kid"))
