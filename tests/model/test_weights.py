"""Weights are read as float32 whatever they were saved as, under the names of the network, or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.folder import find_files
from ptq_diffusion.model.weights import EARLIER, read_weights


def load(folder):
    return DiffusersDenoiser.from_folder(str(folder)).network.state_dict()


@pytest.fixture
def change(folder):
    """Replaces the tensors in the folder's file by what a function makes of them; the folder."""
    (path,) = (folder / "unet").glob("*.safetensors")

    def apply(function):
        save_file({name: tensor.contiguous() for name, tensor in function(load_file(path)).items()}, path)
        return folder

    return apply


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_weights_of_every_precision_become_float32(folder, change, dtype):
    expected = load(folder)
    got = load(change(lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert list(got) == list(expected)
    for name, tensor in got.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].to(dtype).float())


def test_mixed_precisions_become_float32_and_are_said(folder, change):
    expected = load(folder)
    change(lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].half()})
    with pytest.warns(UserWarning, match="of float16 and float32; all become float32"):
        got = load(folder)
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    assert torch.equal(got["conv_in.weight"], expected["conv_in.weight"].half().float())


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_numbers_that_are_no_floats_are_refused(change, dtype):
    folder = change(lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].to(dtype)})
    with pytest.raises(ValueError, match="expected conv_in.weight as float32, .* got .*; give the folder of the float"):
        load(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused(change, value):
    def spoil(tensors):
        tensors["mid_block.resnets.0.conv1.bias"][1] = value
        return tensors

    with pytest.raises(ValueError, match="NaN or infinity in mid_block.resnets.0.conv1.bias"):
        load(change(spoil))


def test_a_double_that_no_float32_holds_is_refused(change):
    def spoil(tensors):
        return {name: torch.full_like(tensor.double(), 1e300) for name, tensor in tensors.items()}

    with pytest.raises(ValueError, match="NaN or infinity"):
        load(change(spoil))


def inside(name):
    """As a compiled block leaves it."""
    return name.replace("mid_block.", "mid_block._orig_mod.")


@pytest.mark.parametrize(
    "rename",
    [
        "_orig_mod.{}".format,
        "module.{}".format,
        "_orig_mod.module.{}".format,
        "module._orig_mod.{}".format,
        inside,
    ],
    ids=["compiled", "parallel", "compiled around parallel", "parallel around compiled", "a block compiled"],
)
def test_what_compiling_left_in_names_is_dropped_and_said(folder, change, rename):
    expected = load(folder)
    change(lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    with pytest.warns(UserWarning, match=r"a compiled or wrapped network; .* is read as \w+") as warnings:
        got = load(folder)
    assert len(warnings) == 1
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_weight_with_and_without_the_prefix_is_refused(change):
    folder = change(lambda tensors: tensors | {"_orig_mod.conv_in.bias": tensors["conv_in.bias"] + 1})
    with pytest.raises(ValueError, match="expected every weight once"):
        load(folder)


def test_names_of_attention_in_early_versions_of_diffusers_are_known(folder, change):
    expected = load(folder)

    def early(name):
        for old, new in EARLIER.items():
            if "attentions" in name:
                name = name.replace(f".{new}.", f".{old}.")
        return name

    change(lambda tensors: {early(name): tensor for name, tensor in tensors.items()})
    names = set(read_weights(find_files(str(folder)).network))
    assert {name.split(".")[-2] for name in names} >= set(EARLIER)
    got = load(folder)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


ODD = {
    "one less": (lambda tensors: without(tensors, "conv_in.bias"), "conv_in.bias and 0 more have no counterpart"),
    "one more": (lambda tensors: tensors | {"odd": torch.ones(1)}, "odd and 0 more have no counterpart"),
    "none": (lambda tensors: {}, "have no counterpart"),
    "an adapter": (
        lambda tensors: (
            without(tensors, "conv_in.weight")
            | {"conv_in.base_layer.weight": tensors["conv_in.weight"], "conv_in.lora_A.default.weight": torch.ones(1)}
        ),
        r"2 more have no counterpart; it has an adapter: pipe\.fuse_lora\(\); pipe\.unload_lora_weights\(\), then save",
    ),
    "another shape": (
        lambda tensors: tensors | {"conv_in.bias": torch.ones(9)},
        r"do not belong together: conv_in.bias is \(9,\) in the weights and \(8,\)",
    ),
}


@pytest.mark.parametrize(("function", "message"), ODD.values(), ids=ODD)
def test_weights_of_another_network_are_refused(change, function, message):
    with pytest.raises(ValueError, match=message):
        load(change(function))


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs", b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{", b"\xff" * 99]
)
def test_files_that_are_no_safetensors_are_refused(folder, content):
    (path,) = (folder / "unet").glob("*.safetensors")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected weights in {path}, got a file that is broken"):
        load(folder)
