"""`ptq-diffusion layers`: every site once, its work and its bits, in 80 columns and as comma-separated values."""

import csv
import io

import pytest
from rich.console import Console

from ptq_diffusion.command.layers import print_layers, sites_of, table_of
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
    rows = list(sites_of([*words, "bitwidth=share", "sampler.steps=10"]))
    console = Console(width=80, file=io.StringIO())
    console.print(table_of(rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:1] == [rows[0].name] for line in lines) and f"{len(rows)} sites" in lines[-2]
    assert "4-8" in console.file.getvalue() and {len(row.activation) for row in rows} == {1, 10}


def test_bits_that_are_measured_are_not_known(words, capsys):
    print_layers([*words, "bitwidth=budget", "bitwidth.saving=4"])
    assert "goal=plan makes them" in capsys.readouterr().out


def test_other_words_are_refused(words):
    with pytest.raises(ValueError, match=r"expected OPTION=VALUE or --csv, got --odd; ptq-diffusion layers --help"):
        print_layers([*words, "--odd"])
