"""Errors of layers by step: whole experiments, their table, their figure and their limits."""

import csv
import re

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.stage.drawing.layers import COLUMNS, LayerErrors, layer_chunks

ATTENTION = ("bitwidth.attention.weight=8", "bitwidth.attention.activation=8")


@pytest.mark.parametrize("correction", ["none", "rescaled"])
def test_corrected_layers_have_the_errors_of_what_is_changed(make, correction):
    """No correction leaves every number as it is; rescaled layers err less, and an output layer by itself as before."""
    words = ["goal=layers", "layers.images=5", "noise.images=16", f"correction={correction}", "bitwidth=w4a4"]
    folder = make(*words, *ATTENTION)
    layers = LayerErrors.load(folder)
    quantized, accumulated, corrected, along = (layers.errors[name] for name in COLUMNS)
    assert quantized.shape == (len(layers.sites), 3) and not (folder / "chunks").exists()
    first = layers.sites.index("conv_in")
    assert quantized[first, 0] == accumulated[first, 0] and (quantized[first, 1:] != accumulated[first, 1:]).all()
    if correction == "none":
        assert torch.equal(quantized, corrected) and torch.equal(accumulated, along)
        numbers = (folder / "layers.safetensors").read_bytes()
        assert make(*words, *ATTENTION, "force=layers") == folder
        assert (folder / "layers.safetensors").read_bytes() == numbers
    else:
        last = layers.sites.index("conv_out")
        assert torch.equal(quantized[last], corrected[last])
        assert corrected.log().median() < quantized.log().median()
        assert along.log().median() < accumulated.log().median()


@pytest.mark.figures
def test_a_report_has_them_as_a_table_and_a_figure_where_they_are_asked_for(report, capsys):
    found, folder = report("layers.images=2", "bitwidth=w4a4")
    places = re.findall(r"(?m)^(\d+) of (\d+)", capsys.readouterr().out)
    assert places == [(str(place), str(len(places))) for place in range(1, len(places) + 1)], "stages are counted once"
    assert found["figures"][-1] == "layers.png"
    assert all((folder / f"layers.{ending}").stat().st_size > 10_000 for ending in ("png", "pdf"))
    layers = LayerErrors.load(folder.parents[1] / "store" / "layers" / found["signatures"]["layers"])
    with (folder / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["site"] for row in rows[::3]] == list(layers.sites) and len(rows) == 3 * len(layers.sites)
    assert [row["step"] for row in rows[:3]] == ["0", "1", "2"]
    for column in COLUMNS:
        assert [row[column] for row in rows] == [str(number) for number in layers.errors[column].flatten().tolist()]
    bits = {row["site"]: (row["weight_bits"], row["activation_bits"]) for row in rows}
    assert (bits["conv_in"], bits["time_embedding.linear_1"]) == (("8", "8"), ("4", "4"))
    kinds = {row["site"].rpartition(".")[2]: row["kind"] for row in rows}
    assert (kinds["qk"], kinds["conv1"], kinds["to_q"]) == ("matmul", "conv2d", "linear")


@pytest.mark.parametrize(("images", "sizes"), [(3, [3]), (7, [4, 3]), (9, [4, 4, 1])])
def test_they_are_measured_on_the_first_images_of_the_first_seed(images, sizes):
    cfg = OmegaConf.create({"layers": {"images": images}, "seeds": [5, 0], "micro_batch": 64})
    parts = layer_chunks(cfg)
    assert {(part.purpose, part.seed) for part in parts} == {("images", 5)}
    assert [part.size for part in parts] == [part.count for part in parts] == sizes
    assert [part.first + place for part in parts for place in range(part.count)] == list(range(images))


def test_no_images_are_refused_as_a_goal(make):
    with pytest.raises(ValueError, match=r"images to compare layers on, got layers.images=0; set layers.images=8"):
        make("goal=layers")
