"""The figure of layers' errors: its groups, its labels, its colours, and that anything can be drawn."""

import numpy as np
import pytest

from ptq_diffusion.report.layer_figure import colours, layer_figure, site_groups, spread_out

pytestmark = pytest.mark.figures


def test_sites_are_grouped_by_block_in_their_order():
    sites = ["conv_in", "down_blocks.0.a.conv", "down_blocks.0.b", "down_blocks.1.a", "mid_block.a.0.conv", "conv_out"]
    groups = [("conv_in", 1), ("down_blocks.0", 2), ("down_blocks.1", 1), ("mid_block", 1), ("conv_out", 1)]
    assert site_groups(sites) == groups
    assert site_groups([f"unet.model.{site}" for site in sites]) == groups
    assert site_groups(["a.b.c"]) == [("a", 1)]
    assert [name for name, _ in site_groups(["a.0.x", "b", "a.0.y"])] == ["a.0", "b", "a.0"]


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 50], [50, 97, 98, 99], [10, 30, 50], [4]])
def test_labels_keep_their_distance_and_their_order_and_move_only_where_they_must(places):
    apart = spread_out(places, 5, 99)
    assert all(after - before >= 5 for before, after in zip(apart, apart[1:], strict=False))
    assert apart[-1] <= 99
    if all(after - before >= 5 for before, after in zip(places, places[1:], strict=False)):
        assert apart == places


def test_colours_are_whole_powers_of_ten_of_five_decades_at_most():
    spread = np.geomspace(1e-12, 0.5, 1000).reshape(20, 50)
    norm = colours([spread, np.full((20, 50), np.nan)])
    assert (norm.vmin, norm.vmax) == pytest.approx((1e-5, 1))
    constant = colours([np.full((2, 2), 0.05)])
    assert (constant.vmin, constant.vmax) == pytest.approx((0.01, 0.1))


@pytest.mark.parametrize(("value", "sites", "steps"), [(0.0, 1, 1), (np.nan, 2, 3), (1e-3, 260, 2)])
def test_any_errors_can_be_drawn_and_the_same_twice(tmp_path, value, sites, steps):
    names = [f"blocks.{place // 2}.layer{place % 2}" for place in range(sites)]
    errors = {("quantized", "alone"): np.full((sites, steps), value)}
    files = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "layers.png"
        path.parent.mkdir()
        layer_figure(names, errors, [900.0 - i for i in range(steps)], path)
        files.append([path.read_bytes(), path.with_suffix(".pdf").read_bytes()])
    assert files[0] == files[1]
