"""One table of many runs: a line for each float model, quantized model and correction, and for what is missing."""

import csv
import io
import json
import logging
import shutil
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from ptq_diffusion.command.collect import collect_runs
from ptq_diffusion.engine.stage import needed
from ptq_diffusion.report.report import table as report_table
from ptq_diffusion.report.sweep.collect import collect
from ptq_diffusion.report.sweep.runs import UNCOUNTED, read_config
from ptq_diffusion.report.sweep.table import WholeWords
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.evaluate import Evaluate
from tests.experiments import composed
from tests.report.sweep.run_folders import EXAMPLE, kinds, other_protocol, run_like, table


def test_what_runs_share_is_one_line(tmp_path):
    for correction, eta, bits, noise in product(("none", "ptqd", "bias"), (0.0, 1.0), (4, 8), (128, 256)):
        run_like(tmp_path, correction, eta, bits, noise)
    rows = table(tmp_path)
    assert kinds(rows) == {"full precision": 2, "none": 4, "ptqd": 8, "bias": 8}
    assert not any(row["reason"] for row in rows)
    assert {(row["sampler.eta"], row["fid"]) for row in rows if row["correction"] == "full precision"} == {
        ("0", "1.0"),
        ("1", "2.0"),
    }, "a float model has only the levels that it depends on"


def printed(shown, width=80):
    """What a console of so many columns shows, its words alone."""
    screen = io.StringIO()
    Console(file=screen, width=width).print(shown)
    assert max(map(len, screen.getvalue().splitlines())) <= width
    return screen.getvalue()


FOUND = "-0.780 [-0.870, -0.690]"
AGAINST = (
    ["bits W/A", "eta", "correction", "FID ± se", "FID - quantized, 95 %", "FID - rescaled_matched, 95 %"]
    + ["FID to float - rescaled_matched, 95 %", "to float", "PSNR", "run"],
    [
        ["4/8", "1.0", "rescaled_readout_matched", "3.523 ± 0.053", FOUND, FOUND, FOUND, "0.015", "31.13", "a"],
        ["4/8", "0.0", "none", "failed", "ValueError: set correction.readout_bits=32", "", "", "", "", "b"],
    ],
)
"""What `collect --against` shows at its widest."""


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_word_breaks_on_any_screen(width):
    text = printed(WholeWords(*AGAINST, "title", "caption"), width).split()
    heads = [word for head in AGAINST[0][:-1] for word in head.split()]
    cells = [word for row in AGAINST[1] for cell in row[:-1] for word in cell.split()]
    names = "rescaled readout matched".split()
    assert {*heads, *names, *cells} - {"rescaled_readout_matched"} <= set(text)
    assert text.count("title") == text.count("caption") == 1


def test_what_is_printed_is_whole_on_80_columns(tmp_path):
    for correction, eta in product(("none", "rescaled_readout_matched"), (0.0, 1.0)):
        run_like(tmp_path, correction, eta)
    (sheet,) = collect([tmp_path]).sheets
    report = json.loads((EXAMPLE / "report.json").read_text())
    for text in (printed(sheet.console()), printed(report_table(report))):
        assert "…" not in text and {"rescaled", "readout", "matched"} <= set(text.split())


def test_the_cells_that_no_run_has_are_those_of_the_full_product(tmp_path):
    cells = list(product(("ptqd", "bias"), (0.0, 1.0), (4, 8)))
    for cell in cells[1:-1]:
        run_like(tmp_path, *cell)
    absent = [row for row in table(tmp_path) if row["reason"] == "not run"]
    assert [(row["correction"], row["sampler.eta"], row["W/A"]) for row in absent] == [
        ("ptqd", "0", "4/8"),
        ("bias", "1", "8/8"),
    ]


def test_levels_that_exclude_each_other_are_not_crossed(tmp_path):
    for eta in (0.0, 1.0):
        run_like(tmp_path, eta=eta)
    ancestral = run_like(tmp_path, eta=0.5)
    text = (ancestral / "config.yaml").read_text()
    (ancestral / "config.yaml").write_text(text.replace("  eta: 0.5\n", "").replace("sampler.DDIM", "sampler.DDPM"))
    assert not [row for row in table(tmp_path) if row["reason"]]


def test_sweeps_that_lie_together_are_no_grid(tmp_path):
    for place in range(4):
        run_like(tmp_path, eta=place / 4, bits=4 + place, noise=100 + place)
    (line,) = (row for row in table(tmp_path) if row["reason"])
    assert line["reason"].startswith(f"{4**3 - 4} more cells")


def test_runs_without_a_report_say_why_and_add_no_cells(tmp_path):
    run_like(tmp_path, eta=0.0)
    (run_like(tmp_path, eta=1.0) / "report.json").unlink()
    failed = run_like(tmp_path, eta=2.0)
    (failed / "report.json").unlink()
    failure = {"error": "ValueError", "message": "expected | less", "config": read_config(failed)}
    (failed / "failure.json").write_text(json.dumps(failure))
    reasons = {row["sampler.eta"]: row["reason"] for row in table(tmp_path) if row["reason"]}
    assert reasons == {"1": "unfinished: no report.json", "2": "failed: ValueError: expected | less"}
    lines = (tmp_path / "collected" / "table.md").read_text().split("\n\n")[1].splitlines()
    assert len({line.count("|") for line in lines}) == 1, "a message breaks no line of the table"
    said = printed(collect([tmp_path]).sheets[0].console(), 300)
    assert f"failed: {failed.name}: ValueError: expected | less" in said, "on the console, below the table"
    assert said.count("ValueError") == 1


def test_a_later_failure_does_not_outrank_a_report(tmp_path):
    run = run_like(tmp_path)
    (run / "failure.json").write_text(json.dumps({"error": "OSError", "message": "no space", "config": {}}))
    assert [row["reason"] for row in table(tmp_path)] == [""] * 3


def test_nothing_but_failures_is_a_table_too(tmp_path):
    (run_like(tmp_path) / "report.json").unlink()
    assert [row["reason"] for row in table(tmp_path)] == ["unfinished: no report.json"]


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("signatures", stage.name) for stage in VARIANTS.values()),
        *(("protocol", key) for key in ("metric", "against")),
        (None, "protocol_id"),
        *((None, key) for key in ("rows", "paired", "protocol", "signatures")),
    ],
)
def test_a_report_that_lacks_what_tables_read_is_refused(tmp_path, part, key):
    path = run_like(tmp_path) / "report.json"
    content = json.loads(path.read_text())
    del (content[part] if part else content)[key]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{key}.*; remove the folder or run its command again"):
        collect([tmp_path])


def test_a_metric_is_shown_and_sorted_by_in_its_direction(tmp_path):
    for correction, recall, kid in (("ptqd", 0.2, 0.03), ("bias", 0.9, 0.01), ("tac", 0.5, 0.02)):
        run = run_like(tmp_path, correction)
        content = json.loads((run / "report.json").read_text())
        content["rows"][2] |= {"recall": recall, "kid": kid}
        (run / "report.json").write_text(json.dumps(content))

    def order(metric):
        (sheet,) = collect([tmp_path], metric=metric).sheets
        return [line.correction for line in sheet.lines if line.gain], sheet.markdown()

    assert order("recall")[0] == order("kid")[0] == ["bias", "tac", "ptqd"]
    assert order(None)[0] == ["bias", "ptqd", "tac"], "by name"
    assert (
        "| recall ± se | recall - quantized, 95 % |" in order("recall")[1]
        and "| highest recall |" in order("recall")[1]
    )
    assert "0.01 ± " in order("kid")[1] and "lowest KID" in order("kid")[1]
    with pytest.raises(ValueError, match="classifier_score, coverage, density, .*, ssim_to_fp, got 'nothing'"):
        collect([tmp_path], metric="nothing")


def test_latex_escapes_what_has_a_meaning_there(tmp_path):
    run_like(tmp_path, "rescaled_matched")
    text = collect([tmp_path]).latex()
    body = text[text.index("midrule") : text.index("bottomrule")]
    assert r"rescaled\_matched & 3.856 $\pm$ 0.184" in body and r"95 \%" in text
    assert body.count(r"\\") == 3 and text.count("{") == text.count("}")
    assert len({line.count("&") for line in text.splitlines() if line.endswith(r"\\")}) == 1


def test_runs_of_one_name_below_different_folders_are_two(tmp_path):
    """Neither takes the other's place: not in the table, and not where protocols are compared."""
    for place, eta in (("a", 0.0), ("b", 1.0)):
        run_like(tmp_path / place, eta=eta).rename(tmp_path / place / "same")
    assert {row["run"] for row in table(tmp_path)} == {"a/same", "b/same"}
    other_protocol(tmp_path / "a" / "same")
    assert len(collect([tmp_path]).sheets) == 2


def test_a_folder_without_runs_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="run experiments first"):
        collect([tmp_path])


def test_corrections_are_compared_by_the_features_of_their_images(command, tmp_path):
    command("-m", "correction=ptqd,none,bias")
    for images in tmp_path.glob("outputs/store/samples_*"):
        shutil.rmtree(images)
    runs = str(tmp_path / "outputs" / "runs")
    said = command("collect", runs, "--against", "none", tiny=())
    assert said.splitlines()[-1] == f"{runs}/collected/samples.pdf"
    with (tmp_path / "outputs/runs/collected/table.csv").open() as file:
        rows = {row["correction"]: row for row in csv.DictReader(file)}
    reports = {json.loads(path.read_text())["rows"][2]["correction"]: path for path in Path(runs).glob("*/report.json")}
    for correction in ("ptqd", "bias"):
        (pair,) = (
            pair
            for pair in json.loads(reports[correction].read_text())["paired"]
            if (pair["a"], pair["b"], pair["metric"]) == ("quantized", "corrected", "fid")
        )
        for part, end in (("", "difference"), ("_low", "high"), ("_high", "low")):
            assert float(rows[correction][f"gain{part}"]) == pytest.approx(-pair[end]), "the report's, turned round"
    for part in ("", "_low", "_high"):
        for correction in ("ptqd", "bias"):
            own, other = rows[correction][f"gain{part}"], rows[correction][f"FID - none, 95 %{part}"]
            assert float(own) == pytest.approx(float(other), abs=1e-6), "none is the quantized model"
    best = min(rows.values(), key=lambda row: float(row["fid"]) if row["gain"] else 1e9)["correction"]
    command("collect", runs, "--against", "best", tiny=())
    with (tmp_path / "outputs/runs/collected/table.csv").open() as file:
        found = {row["correction"]: row["FID - best, 95 %"] for row in csv.DictReader(file)}
    assert found[best] == "" and all(float(found[name]) >= 0 for name in ("ptqd", "bias") if name != best)
    with pytest.raises(ValueError, match="bias, none, ptqd"):
        collect([Path(runs)], ["nothing"])
    shutil.copytree(runs, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "outputs")
    copied = collect([tmp_path / "elsewhere"], ["none"]).sheets[0]
    assert any(line.against for line in copied.lines), "features travel with their run"
    for features in (tmp_path / "elsewhere").glob("*/features"):
        shutil.rmtree(features)
    with pytest.raises(FileNotFoundError, match="expected the features of .*copy that folder too"):
        collect([tmp_path / "elsewhere"], ["ptqd"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "a: [1"),
        ("report.json", '{"rows": ['),
        ("report.json", "null"),
        ("failure.json", "{}"),
        ("failure.json", ""),
    ],
)
def test_a_broken_file_of_a_run_is_named(tmp_path, name, text):
    run_like(tmp_path)
    broken = run_like(tmp_path, correction="bias")
    (broken / "report.json").unlink()
    (broken / name).write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)expected the files of a run in {broken}, .*run its command again"):
        collect([tmp_path])


@pytest.mark.parametrize("text", ["- a list", "goal: report", "goal: noise", "a word"])
def test_the_files_of_others_are_no_runs(tmp_path, text):
    run_like(tmp_path / "runs")
    before = table(tmp_path / "runs")
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "config.yaml").write_text(text)
    assert table(tmp_path / "runs") == before


def test_levels_that_only_look_like_numbers_are_text(tmp_path):
    folders = ("runs/2024-05/model", "runs/2024-06/model", "\u00b2")
    for place, folder in enumerate(folders):
        run = run_like(tmp_path, eta=place / 4)
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("path: bundled:cifar10_ddpm", f"path: {folder}", 1))
    assert {row["model.path"] for row in table(tmp_path) if row["run"]} == set(folders)


def test_options_that_no_number_depends_on_are_no_factors(tmp_path):
    """Of the whole configuration what no stage on the way reads, such as the images that layers are compared on."""
    read = {part.partition(".")[0] for stage in needed(Evaluate) for part in stage.uses}
    unread = [str(key) for key in composed() if key not in read]
    assert "layers" in unread and all(f"{key}.".startswith(UNCOUNTED) for key in unread), unread
    run_like(tmp_path / "plain")
    run = run_like(tmp_path / "compared")
    text = (run / "config.yaml").read_text()
    assert "layers:\n  images: 0\n" in text
    (run / "config.yaml").write_text(text.replace("layers:\n  images: 0\n", "layers:\n  images: 8\n"))
    assert "layers.images" not in table(tmp_path)[0]


@pytest.mark.figures
def test_a_console_that_shows_a_sweeps_messages_has_none_of_fonts(tmp_path, caplog):
    """Hydra's logging of a sweep shows what any library tells, and drawing a PDF has much to tell."""
    logging.getLogger("fontTools").setLevel(logging.NOTSET)
    caplog.set_level(logging.INFO)
    run_like(tmp_path)
    collect_runs([str(tmp_path)])
    assert (tmp_path / "collected" / "frontier.pdf").is_file()
    assert not [record for record in caplog.records if record.levelno < logging.WARNING]
