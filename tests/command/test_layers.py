"""`ptq-diffusion layers`: every site once, its work and its bits, in 80 columns and as comma-separated values."""

import csv
import io
import re

import pytest
from rich.console import Console

from ptq_diffusion.command.layers import print_layers, sites_of, table_of
from ptq_diffusion.command.python import compose
from ptq_diffusion.model import DiffusersDenoiser


@pytest.fixture
def words(tiny_model_folder):
    return ["model=diffusers", f"model.path={tiny_model_folder()}", "feature=pixels", "reference=none"]


def test_sites_are_those_of_the_network_with_the_bits_of_the_plan(words, tiny_model_folder, capsys):
    print_layers([*words, "bitwidth=w4a8", "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    sites = model.sites()
    assert [row["site"] for row in rows] == [site.name for site in sites]
    assert [int(row["macs"]) for row in rows] == [site.macs for site in sites]
    for row, site in zip(rows, sites, strict=True):
        assert (row["kind"], row["role"]) == (site.kind.value, site.role.value)
        assert row["weight_shape"] == ("x".join(map(str, site.weight_shape)) if site.weighted else "")
        weight, activation = {"first": (8, 8), "last": (8, 8), "inner": (4, 8), "attention": (32, 32)}[site.role.value]
        assert (row["weight_bits"], row["activation_bits"]) == (str(weight), str(activation))


def test_the_table_fits_80_columns_with_bits_by_step_too(words):
    rows = list(sites_of(compose(*words, "bitwidth=share", "sampler.steps=10")))
    console = Console(width=80, file=io.StringIO())
    console.print(table_of(rows, 80))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:1] == [rows[0].name] for line in lines) and f"{len(rows)} sites" in lines[-2]
    assert "4-8" in console.file.getvalue() and {len(row.activation) for row in rows} == {1, 10}


@pytest.mark.parametrize("width", [72, 80, 120])
def test_names_go_on_after_a_dot_and_are_whole(words, width):
    rows = list(sites_of(compose(*words)))
    console = Console(width=width, file=io.StringIO())
    console.print(table_of(rows, width))
    lines = [line[1:] for line in console.file.getvalue().splitlines()[3:-2]]
    names: list[str] = []
    for first in (re.match(r" *\S*", line).group().rstrip() for line in lines):
        if first.startswith("  "):
            assert names[-1].endswith(".")
            names[-1] += first.strip()
        else:
            names.append(first)
    assert names == [row.name for row in rows]
    assert (len(lines) > len(rows)) is (width < 120), "there is room on wider consoles"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["quantizer@quantizer.weight=log2"], "choose another quantizer@quantizer.weight"),
        (["step_groups@quantizer.steps=equal", "quantizer@quantizer.activation=dynamic_per_tensor"], "step_groups"),
        (["range_search@quantizer.weight.range_search=lp", "quantizer.weight.range_search.p=-1"], "expected p > 0"),
    ],
)
def test_quantizers_are_checked_as_of_a_run(words, more, message):
    with pytest.raises(ValueError, match=message):
        print_layers([*words, *more])


def test_bits_that_are_measured_are_not_known(words, capsys):
    print_layers([*words, "bitwidth=budget", "bitwidth.saving=4"])
    assert "goal=plan makes them" in capsys.readouterr().out


def test_layers_that_a_backend_cannot_compute_are_named_with_the_reason(words, capsys):
    """All that the run refuses, and its products of attention with their layer."""
    attention = ["bitwidth.attention.activation=8", "bitwidth.attention.weight=8"]
    pattern = 'bitwidth.patterns=[{name:"conv_in",weight:32,activation:8}]'
    words = [*words, "backend=integer", *attention, pattern]
    print_layers([*words, "--csv"])
    rows = {row["site"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    products = {name for name, row in rows.items() if row["kind"] == "matmul"}
    assert products and {name for name, row in rows.items() if row["obstacle"]} == products | {"conv_in"}
    print_layers(words)
    assert f"conv_in: {rows['conv_in']['obstacle']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--odd"], r"expected OPTION=VALUE or one of .*--csv, --config-dir, got --odd; ptq-diffusion layers --help"),
        (["--config-dir=/nowhere"], "none at /nowhere"),
        (["--config-dir=/", "hydra.searchpath=[/]"], "got both"),
    ],
)
def test_other_words_are_refused(words, more, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        print_layers([*words, *more])
