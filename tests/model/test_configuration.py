"""A config.json is taken as it is meant or refused: no option is passed over and no value cast."""

import json
from typing import get_type_hints

import pytest
from diffusers import UNet2DModel

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.configuration import fits


@pytest.fixture
def refused(folder):
    """Whether a folder whose network's configuration is changed so is refused in these words."""

    def load(message, **changes):
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ValueError, match=message):
            DiffusersDenoiser.from_folder(str(folder))

    return load


@pytest.mark.parametrize(
    ("quantization", "name"),
    [({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"), ({}, "a method"), ("int8", "a method")],
    ids=["named", "empty", "text"],
)
def test_a_network_that_is_quantized_already_is_refused_by_name(refused, quantization, name):
    refused(f"already quantized by {name}.*give the float model", quantization_config=quantization)


def test_options_that_diffusers_would_pass_over_are_refused(refused):
    refused("expected options of UNet2DModel in .*, got odd, odder, which this version .* 0.1.1", odd=1, odder=None,
            _diffusers_version="0.1.1")  # fmt: skip


WRONG = {
    "sample_size": ["8", 8.0, [8], [8.0, 8.0], True, {"height": 8}],
    "in_channels": ["3", 3.0, True, None, [3]],
    "block_out_channels": [8, "8", [8.0, 16.0], [True, 16], None, [[8], 16]],
    "down_block_types": ["DownBlock2D", [1, 2], None],
    "norm_eps": ["1e-5", True, None, float("inf"), float("nan")],
    "flip_sin_to_cos": [1, "true", None],
    "act_fn": [1, None, ["silu"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_values_of_a_wrong_type_are_refused_in_one_line(refused, name, value):
    refused(f"^expected {name} of type .* in .*config.json, got .*; mend it there$", **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": -3},
        {"block_out_channels": [10**12, 10**12]},
        {"block_out_channels": [8]},
        {"block_out_channels": []},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"layers_per_block": -1},
        {"layers_per_block": 0},
        {"down_block_types": ["Odd", "Odd"]},
        {"act_fn": "odd"},
        {"time_embedding_type": "odd"},
        {"attention_head_dim": 0},
        {"sample_size": 0},
        {"sample_size": 10**9},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_in_one_line(refused, changes):
    refused("^expected [^\n]*$", **changes)


def test_options_that_are_left_out_have_the_defaults_of_diffusers(folder):
    """As in folders that an earlier version saved."""
    path = folder / "unet" / "config.json"
    before = DiffusersDenoiser.from_folder(str(folder)).config
    written = json.loads(path.read_text())
    for name in ("class_embed_type", "num_class_embeds", "dropout", "add_attention", "_diffusers_version"):
        written.pop(name)
    path.write_text(json.dumps(written))
    config = DiffusersDenoiser.from_folder(str(folder)).config
    assert {name: value for name, value in config.items() if name in before} == {
        name: value for name, value in before.items() if name != "_diffusers_version"
    }


def test_what_diffusers_itself_writes_fits():
    for options in ({}, {"sample_size": (16, 12)}, {"sample_size": 32, "attention_head_dim": None, "dropout": 0}):
        network = UNet2DModel(block_out_channels=(32,) * 4, layers_per_block=1, **options)
        kinds = get_type_hints(UNet2DModel.__init__)
        config = json.loads(network.to_json_string())
        assert all(fits(config[name], kind) for name, kind in kinds.items() if name in config)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (int, [1, -1], [True, 1.0, "1", None, [1]]),
        (float, [1, 1.5], [True, "1", None, float("nan")]),
        (bool, [True], [1, 0, None]),
        (str, ["a", ""], [1, None]),
        (int | None, [None, 1], [False, "1"]),
        (tuple[int, ...], [[], [1], (1, 2, 3)], [1, [1.0], "12"]),
        (tuple[int], [[1], [1, 2]], [[None]]),  # as diffusers annotates tuples of any length
        (tuple[tuple[int]], [[[2, 1], 1], [[1], [2]]], [[["a"], 1], 1, ["a"]]),
        (tuple[int, int], [[1, 2]], [[1], [1, 2, 3]]),
        (int | tuple[int, int], [1, [1, 2]], [[1], "1"]),
        (dict, [{}, 1], []),
    ],
    ids=str,
)
def test_a_value_fits_its_annotation(kind, right, wrong):
    assert all(fits(value, kind) for value in right)
    assert not any(fits(value, kind) for value in wrong)
