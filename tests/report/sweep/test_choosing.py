"""Runs are chosen, told apart by protocol and pooled over seeds before they are one table."""

import csv
import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from ptq_diffusion.report.sweep.collect import collect
from ptq_diffusion.report.sweep.runs import BITS, Run, differing
from ptq_diffusion.report.sweep.table import titles
from tests.report.sweep.run_folders import EXAMPLE, of_seeds, other_protocol, run_like, table


def test_each_protocol_has_a_table_of_its_own(tmp_path):
    for eta, correction in product((0.0, 1.0), ("ptqd", "bias")):
        other = run_like(tmp_path, correction, eta)
        if eta == 1.0:
            other_protocol(other)
    rows = table(tmp_path)
    first = json.loads((EXAMPLE / "report.json").read_text())["protocol_id"][:6]
    assert Counter(row["protocol"] for row in rows) == {f"fid_cifar10net-{name}": 4 for name in (first, "anothe")}
    assert not any(row["reason"] for row in rows), "two grids, each of them whole"
    text = (tmp_path / "collected" / "table.md").read_text()
    assert text.count("| correction |") == 4 and text.count("against 50,000 real images") == 2
    assert len(list((tmp_path / "collected").glob("frontier-fid_cifar10net-*.png"))) == 2


def test_runs_of_other_seeds_are_pooled_and_those_of_shared_seeds_are_not(tmp_path):
    for place, (seeds, fid) in enumerate((((0, 1), 4.0), ((2, 3), 5.0), ((3, 4), 7.0))):
        of_seeds(run_like(tmp_path / str(place)), seeds, fid)
    rows = [row for row in table(tmp_path) if row["correction"] == "ptqd"]
    assert [(row["fid"], row["seeds"], row["protocol"][:14]) for row in rows] == [
        ("4.5", "0 1 2 3", "fid_cifar10net"),
        ("7.0", "3 4", "fid_cifar10net"),
    ]
    assert float(rows[0]["fid_se"]) == pytest.approx(0.3 / 2**0.5) and float(rows[1]["fid_se"]) == 0.3
    assert "and 1 more" in (tmp_path / "collected" / "table.md").read_text()


def test_several_folders_are_one_sweep_and_a_run_in_two_of_them_counts_once(tmp_path):
    for place, correction in (("a", "ptqd"), ("b", "bias")):
        run_like(tmp_path / place, correction)
    collect([tmp_path / "a", tmp_path / "b", tmp_path / "b" / "bias-1.0-4-128"])
    with (tmp_path / "a" / "collected" / "table.csv").open() as file:
        assert Counter(row["run"] for row in csv.DictReader(file)) == {"a/ptqd-1.0-4-128": 3, "b/bias-1.0-4-128": 1}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        collect([tmp_path / "a", tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["eta=0"], {"ptqd", "bias"}),
        (["sampler.eta=0.0", "correction=bias"], {"bias"}),
        (["bits=8/8,2/2", "correction=bias,ptqd"], {"ptqd"}),
        (["model=cifar10_ddpm"], {"ptqd", "bias"}),
    ],
)
def test_conditions_choose_runs(tmp_path, conditions, expected):
    run_like(tmp_path, "bias", 0.0, 4), run_like(tmp_path, "ptqd", 0.0, 8), run_like(tmp_path, "ptqd", 1.0, 4)
    (sheet,) = collect([tmp_path], conditions=conditions).sheets
    assert {run.correction for run in sheet.runs} == expected


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["eta"], "expected --where KEY=VALUE, got 'eta'"),
        (["eta=7"], "expected runs with eta=7, found none among 1"),
        (["nothing=1"], "'nothing', which stands for none"),
        (["candidates=80"], "stands for .*, quantizer.activation.range_search.candidates, quantizer.weight"),
    ],
)
def test_a_condition_that_chooses_nothing_is_refused(tmp_path, conditions, message):
    run_like(tmp_path)
    with pytest.raises(ValueError, match=message):
        collect([tmp_path], conditions=conditions)


def test_a_choice_is_named_in_place_of_the_options_that_it_decides():
    def run(rounding, damping):
        config = {"labels.rounding": rounding, "rounding.damping": damping, BITS: "4/8"}
        return Run(Path(), f"{rounding}-{damping}", config, "none", None, "")

    gptq, other, nearest = run("gptq", "0.01"), run("gptq", "0.1"), run("nearest", "-")
    assert (
        differing([gptq, nearest]) == ["labels.rounding", BITS] and titles(["labels.rounding", BITS])[0] == "rounding"
    )
    assert differing([gptq, other]) == ["rounding.damping", BITS]
    assert differing([gptq, other, nearest]) == ["labels.rounding", "rounding.damping", BITS]
