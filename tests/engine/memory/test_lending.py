"""Networks whose blocks are lent answer bit for bit as those that are whole, and hold one block at a time."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ptq_diffusion.engine.memory.lending import Lent, lend_by_block
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.network import Integer, load_quantized, save_quantized
from ptq_diffusion.network.quantized import QuantizedDenoiser
from tests.model.networks import NETWORKS, condition_of, denoiser_of, states_of
from tests.network.networks import LayerBits, assert_same, named_tensors, quantized
from tests.network.test_families import STEPS, quantized_family


def addresses(module):
    return {name: tensor.data_ptr() for name, tensor in named_tensors(module).items()}


def header(file):
    """The places of tensors in a safetensors file."""
    content = file.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def lent_blocks(denoiser):
    return {name: module for name, module in denoiser.network.named_modules() if isinstance(module, Lent)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_answers_as_it_does_whole_with_one_block_away_from_home_at_a_time(name, tmp_path):
    whole = denoiser_of(name)
    x, condition = states_of(whole), condition_of(whole)
    save_quantized(quantized_family(whole, condition), tmp_path)
    for denoiser, other in ((whole, copy.deepcopy(whole)), (load_quantized(tmp_path), load_quantized(tmp_path))):
        lend_by_block(other)
        blocks = lent_blocks(other)
        inner = other.denoiser if isinstance(other, QuantizedDenoiser) else other
        assert list(blocks) == list(inner.blocks())
        homes, away = {name: addresses(block) for name, block in blocks.items()}, []

        def see(module, *_, blocks=blocks, homes=homes, away=away):
            moved = [name for name, block in blocks.items() if addresses(block) != homes[name]]
            assert [blocks[name] for name in moved] == [module]
            assert not set(addresses(module).values()) & set(homes[moved[0]].values())
            away.append(moved[0])

        for block in blocks.values():
            block.register_forward_hook(see)
        for step in STEPS:
            assert torch.equal(other.predict(x, step, condition).m, denoiser.predict(x, step, condition).m)
        assert set(away) == set(blocks) and {name: addresses(block) for name, block in blocks.items()} == homes
        assert other.fingerprint() == denoiser.fingerprint()


def test_a_backward_pass_keeps_the_copies_of_all_blocks_that_a_forward_alone_forgets():
    """So `ptq-diffusion plan` counts networks whole where gradients are taken, and one block elsewhere."""
    denoiser, x = copy.deepcopy(denoiser_of("pixels")), states_of(denoiser_of("pixels")).requires_grad_()
    lend_by_block(denoiser)
    copies = {}

    def see(module, *_):
        copies[module] = [StorageWeakRef(tensor.untyped_storage()) for tensor in module.parameters()]

    for block in lent_blocks(denoiser).values():
        block.register_forward_hook(see)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            m = denoiser.predict(x, STEPS[0]).m
        alive = {block for block, refs in copies.items() if not all(ref.expired() for ref in refs)}
        assert len(copies) > 1 and alive == (set(copies) if gradients else set())
    del m


def test_a_folder_is_loaded_bit_for_bit_with_its_weights_left_in_the_file(tiny_model_folder):
    """Also those of a class embedding; of another dtype they are in memory."""
    folder = str(tiny_model_folder(classes=4))
    whole, mapped = (DiffusersDenoiser.from_folder(folder, mapped=mapped) for mapped in (False, True))
    ours, theirs = named_tensors(mapped), named_tensors(whole)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # As far from each other as in the file.
    (file,) = Path(folder).glob("unet/*.safetensors")
    places = {name: place["data_offsets"][0] for name, place in header(file).items() if name != "__metadata__"}
    addresses_in_memory = addresses(mapped.network)
    assert places.keys() == addresses_in_memory.keys()
    assert len({addresses_in_memory[name] - place for name, place in places.items()}) == 1 < len(places)
    assert not any(parameter.requires_grad for parameter in mapped.parameters()) and not mapped.network.training
    narrow = DiffusersDenoiser.from_folder(folder, "bfloat16", mapped=True)
    assert narrow.fingerprint() == DiffusersDenoiser.from_folder(folder, "bfloat16").fingerprint()


def test_buffers_that_no_file_holds_have_the_dtype_of_a_mapped_network():
    whole, mapped = (
        DiffusersDenoiser.from_folder("bundled:cifar10_dit", "bfloat16", mapped) for mapped in (False, True)
    )
    buffers, expected = (dict(model.network.named_buffers()) for model in (mapped, whole))
    assert "pos_embed.pos_embed" in buffers and "pos_embed.pos_embed" not in mapped.network.state_dict()
    assert all(buffers[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_what_moves_a_network_leaves_its_blocks_and_a_failed_call_leaves_them_at_home():
    denoiser = copy.deepcopy(denoiser_of("pixels"))
    lend_by_block(denoiser)
    block, inside = next(iter(lent_blocks(denoiser).values())), tuple(f"{name}." for name in lent_blocks(denoiser))
    home = addresses(block)
    denoiser.to("meta")
    assert all(tensor.is_meta != name.startswith(inside) for name, tensor in named_tensors(denoiser.network).items())
    with pytest.raises(TypeError, match="temb"):
        block(torch.zeros(1, 1))
    assert addresses(block) == home


def test_a_copy_with_other_layers_is_lent_and_backends_and_settings_are_those_of_a_whole_network():
    """What was unpacked in a call is forgotten behind it, by integer layers too."""
    denoiser = copy.deepcopy(denoiser_of("pixels"))
    expected = quantized(denoiser, LayerBits(8, 8))
    lend_by_block(denoiser)
    ours = quantized(denoiser, LayerBits(8, 8))
    assert len(lent_blocks(ours)) == len(lent_blocks(denoiser)) > 0
    assert_same(ours, expected, 1)
    assert_same(ours.with_settings(ours.settings), expected, 1)
    unpacked = {name: layer.weights[0]._values is not None for name, layer in ours.layers().items()}
    inside = tuple(f"{name}." for name in lent_blocks(ours))
    assert unpacked == {name: not name.startswith(inside) for name in unpacked}
    assert_same(ours.to_backend(Integer()), expected.to_backend(Integer()), 1)
