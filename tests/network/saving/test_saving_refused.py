"""A folder of something else than one quantized network is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.network import load_quantized
from ptq_diffusion.network.saving import DESCRIPTION, FILES, TENSORS


def rewritten(saved, folder, describe=lambda description: None, store=lambda tensors: tensors):
    """A copy of the folder with another description and other tensors."""
    description = json.loads((saved / DESCRIPTION).read_text())
    description = describe(description) or description
    (folder / DESCRIPTION).write_text(json.dumps(description))
    tensors = {name: tensor.clone() for name, tensor in load_file(saved / TENSORS).items()}
    save_file(store(tensors), folder / TENSORS)
    return folder


def test_a_folder_rewritten_as_it_is_loads(saved, tmp_path, origin):
    def sort(description):
        return json.loads(json.dumps(description, sort_keys=True))

    assert load_quantized(rewritten(saved, tmp_path, sort)).fingerprint() == origin.fingerprint()


def put(*path, value):
    def describe(description):
        at = description
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return describe


def drop(*path):
    def describe(description):
        at = description
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return describe


DESCRIPTIONS = {
    "another version": (put("version", value=2), "version 2 in place of 6"),
    "no version": (drop("version"), "KeyError: 'version'"),
    "a list": (lambda _: [1], "TypeError"),
    "another class": (put("family", value="torch.load"), "KeyError: 'torch.load'"),
    "a class of diffusers": (put("family", value="DiffusionPipeline"), "KeyError: 'DiffusionPipeline'"),
    "no class": (put("family", value=None), "KeyError"),
    "a class that is a list": (put("family", value=["UNet2DModel"]), "TypeError"),
    "blocks that are none": (put("network", "down_block_types", value=["os.system", "os.system"]), "os.system"),
    "labels": (put("network", "num_class_embeds", value=10), "counterpart"),
    "no size": (put("network", "sample_size", value=None), "sample_size"),
    "a wider network": (put("network", "block_out_channels", value=[8, 24]), "ValueError"),
    "more layers": (put("network", "layers_per_block", value=2), "sites"),
    "a network that is text": (put("network", value="unet"), "TypeError: .* of a network, got str"),
    "a plan that is a list": (put("plan", value=[]), "bitwidth plan"),
    "a plan of other weights": (put("plan", "weight", "conv_in", value=[5]), "bytes"),
    "a plan of other inputs": (put("plan", "activation", "conv_in", value=[8]), "the plan's bits, conv_in has others"),
    "a plan of more steps": (put("plan", "activation", "conv_in", value=[6, 8]), "ValueError: .*conv_in"),
    "a plan without a layer": (drop("plan", "activation", "conv_in"), "same sites"),
    "a plan of no bits": (put("plan", "weight", "conv_in", value=[1]), "2 to 8"),
    "no kinds of grids": (drop("symmetric", 0), "settings of .* layers at every step"),
    "kinds of another layer": (put("symmetric", 0, value=["nowhere", False, [True]]), "KeyError: 'conv_in'"),
    "another grid of a weight": (put("symmetric", 0, value=["conv_in", False, [False]]), "zero_point"),
    "a kind that is no kind": (put("symmetric", 0, 2, 0, value=[{}]), "TypeError: expected true or false .* conv_in"),
    "a weight more": (put("symmetric", 0, value=["conv_in", False, [True, True]]), "ValueError"),
    "no weight": (put("symmetric", 0, value=["conv_in", False, []]), "ValueError"),
    "one kind for both": (put("symmetric", 0, value=["conv_in", True]), "ValueError"),
    "a layer twice": (put("symmetric", 1, value=["conv_in", False, [True]]), "settings of .* layers at every step"),
    "a scheduler that is text": (put("scheduler", value="ddpm"), "TypeError: .* of a scheduler, got str"),
}


@pytest.mark.parametrize(("describe", "message"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_description_of_something_else_is_refused(saved, tmp_path, describe, message):
    with pytest.raises(ValueError, match=rf"expected a quantized network of version 6 in .*({message})"):
        load_quantized(rewritten(saved, tmp_path, describe))


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def replaced(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


STORED = {
    "no bits": (without("settings/bits"), "bits"),
    "a layer less": (replaced("settings/scale", lambda t: t[:, 1:].contiguous()), "at every step"),
    "steps more": (replaced("settings/bits", lambda t: t.repeat(2, 1)), "at every step"),
    "other bits": (replaced("settings/bits", lambda t: t + 1), "the plan's bits, conv_in has others"),
    "bits of no grid": (replaced("settings/bits", lambda t: 0 * t), "2 to 8"),
    "a weight that is not there": (replaced("settings/copy", lambda t: t + 1), "the plan.s bits"),
    "a scale of nothing": (replaced("settings/scale", lambda t: 0 * t), "positive scales"),
    "scales in another type": (replaced("settings/scale", lambda t: t.double()), "torch.float64"),
    "no weight": (without("weight/conv_in/0/packed"), "packed"),
    "fewer bytes": (replaced("weight/conv_in/0/packed", lambda t: t[:-1]), "bytes"),
    "bytes that are numbers": (replaced("weight/conv_in/0/packed", lambda t: t.float()), "bytes"),
    "fewer scales": (replaced("weight/conv_in/0/scale", lambda t: t[:-1]), "output channels"),
    "no bias": (without("bias/conv_in"), "bias/conv_in"),
    "a longer bias": (replaced("bias/conv_in", lambda t: t.repeat(2)), "bias of 8 numbers at conv_in"),
    "no normalization": (without("other/conv_norm_out.weight"), "conv_norm_out.weight"),
    "another normalization": (replaced("other/conv_norm_out.weight", lambda t: t[:-1]), "conv_norm_out.weight"),
    "a parameter more": (lambda t: t | {"other/nowhere": torch.ones(1)}, "nowhere has no counterpart"),
    "a weight twice": (lambda t: t | {"other/conv_in.weight": torch.ones(8, 3, 3, 3)}, "conv_in.weight"),
    "a tensor that nothing reads": (lambda t: t | {"nowhere": torch.ones(1)}, "nothing reads nowhere"),
    "a copy that nothing reads": (lambda t: t | {"weight/conv_in/1/packed": torch.ones(1)}, "nothing reads weight"),
    "nothing": (lambda _: {}, "KeyError"),
}


@pytest.mark.parametrize(("store", "message"), STORED.values(), ids=STORED)
def test_tensors_of_something_else_are_refused(saved, tmp_path, store, message):
    with pytest.raises(ValueError, match=rf"(?s)expected a quantized network of version 6 in .*({message})"):
        load_quantized(rewritten(saved, tmp_path, store=store))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": 1}', b"[" * 100_000])
def test_broken_files_are_refused(saved, tmp_path, name, content):
    rewritten(saved, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="got other or broken files"):
        load_quantized(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, tmp_path, name):
    rewritten(saved, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected {name} in"):
        load_quantized(tmp_path)
