"""Lines of a sweep compared with those of one choice of bits, beside a correction."""

import csv
import json

import pytest

from ptq_diffusion.report.sweep.collect import collect
from tests.report.sweep.run_folders import run_like


def test_bits_are_compared_with_other_bits_of_the_same_correction(command, tmp_path):
    command("-m", "bitwidth=w4a8,w8a8", "correction=ptqd,none")
    command("collect", str(tmp_path / "outputs" / "runs"), "--against", "bitwidth=w8a8", tiny=())
    with (tmp_path / "outputs/runs/collected/table.csv").open() as file:
        rows = {(row["W/A"], row["correction"]): row for row in csv.DictReader(file)}
    for name in ("none", "ptqd"):
        low, high = rows["4/8", name], rows["8/8", name]
        for metric, column in (("fid", "FID"), ("fid_to_fp", "FID to float")):
            found = {end: low[f"{column} - bitwidth=w8a8, 95 %{end}"] for end in ("", "_low", "_high")}
            assert float(found[""]) == pytest.approx(float(low[metric]) - float(high[metric]), abs=1e-9)
            assert float(found["_low"]) < float(found[""]) < float(found["_high"])
            assert high[f"{column} - bitwidth=w8a8, 95 %"] == "", "a line is not compared with itself"
    assert rows["", "full precision"]["FID - bitwidth=w8a8, 95 %"] == ""
    # The quantized samples of a run whose report lacks the metric that is shown are not taken for its corrected ones.
    (path,) = (path.parent / "report.json" for path in tmp_path.glob("outputs/runs/*w8a8*ptqd*/config.yaml"))
    report = json.loads(path.read_text())
    report["paired"] = [pair for pair in report["paired"] if pair["metric"] != "kid"]
    path.write_text(json.dumps(report))
    (sheet,) = collect([tmp_path / "outputs" / "runs"], ["bitwidth=w8a8"], metric="kid").sheets
    (line,) = (line for line in sheet.lines if line.correction == "ptqd" and line.levels["W/A"] == "4/8")
    assert line.against["FID - bitwidth=w8a8, 95 %"].difference == pytest.approx(
        float(rows["4/8", "ptqd"]["fid"]) - float(rows["8/8", "ptqd"]["fid"]), abs=1e-9
    )
    (sheet,) = collect([tmp_path / "outputs" / "runs"], ["bitwidth.first.weight=8"]).sheets
    told = {value for line in sheet.lines for value in line.against.values()}
    assert told == {"2 bitwidth.first.weight=8"}, "a cell in which it stands for two runs"


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["sampler.eta=0"], "an option of the quantized network, such as bitwidth=budget, got 'sampler.eta=0'"),
        (["correction=ptqd"], "name a correction without its group"),
        (["bitwidth=w3a3"], "a finished run with bitwidth=w3a3, found none among 2"),
        (["bitwidth=w4a8", "nothing=1"], "--against with one option of these runs, got .nothing."),
        (["bitwidth=w4a8", "calibration.images=64"], "options of one group, got those of bitwidth and calibration"),
        (["ptqd", "none"], "--against once with a correction"),
        (["bitwidth=w4a8", "ptqd"], "--against once with a correction"),
    ],
)
def test_a_baseline_that_is_none_is_refused(tmp_path, words, refusal):
    """The runs below are named alike and differ in the bits that a name stands for."""
    for bits in (4, 8):
        run_like(tmp_path, bits=bits)
    with pytest.raises(ValueError, match=refusal):
        collect([tmp_path], words)
