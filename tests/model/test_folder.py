"""The files that are read of a folder are found in every layout, are its identity, and other folders are told apart."""

import itertools
import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, LDMPipeline, UNet2DModel, VQModel
from safetensors.torch import load_file, save_file

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.decoder import Autoencoder, Pixels, load_decoder
from ptq_diffusion.model.loading import folder_checksum
from tests.steps import at

PLAIN = "diffusion_pytorch_model.safetensors"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path):
    tensors = load_file(path)
    name = min(tensors)
    tensors[name].flatten()[0] += 1e-2
    save_file(tensors, path)


def answer(folder):
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    return denoiser.predict(torch.ones(2, *denoiser.shape), at(10.0)).m


def flat(folder):
    for file in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()


def saved_again(**options):
    def change(folder):
        pipeline = DDPMPipeline.from_pretrained(folder)
        (folder / "unet" / PLAIN).unlink()
        pipeline.save_pretrained(folder, **options)

    return change


LAYOUTS = {
    "flat": flat,
    "variant": saved_again(variant="fp16"),
    "shards": saved_again(max_shard_size="20KB"),
    "shards of a variant": saved_again(variant="ema", max_shard_size="20KB"),
    "flat shards": lambda folder: (saved_again(max_shard_size="20KB")(folder), flat(folder)),
    "without model_index.json": lambda folder: (folder / "model_index.json").unlink(),
}
every_layout = pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_every_layout_is_the_same_network(folder, change, capfd):
    expected = answer(folder)
    change(folder)
    capfd.readouterr()
    assert torch.equal(answer(folder), expected)
    # No progress bars of shards and no remarks of diffusers, whoever loads.
    assert capfd.readouterr() == ("", "")


@every_layout
def test_the_checksum_changes_with_every_file_that_is_read_and_with_no_other(folder, change):
    """With the network, the scheduler, every shard, the index and model_index.json."""
    change(folder)
    before = folder_checksum(str(folder))
    assert len(before) == 16 and before == folder_checksum(str(folder))
    seen = {before}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    assert len(files) >= 3
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".json":
            edit(file, added=1)
        else:
            edit_weights(file)
        seen.add(folder_checksum(str(folder)))
        file.write_bytes(content)
    assert len(seen) == 1 + len(files)
    for name in ("README.md", "diffusion_pytorch_model.bin", "other.safetensors"):
        files[0].with_name(name).write_text("not read")
        (folder / name).write_text("not read")
    assert folder_checksum(str(folder)) == before


def test_the_checksum_belongs_to_the_contents(tiny_model_folder, folder):
    assert folder_checksum(str(folder)) == folder_checksum(str(tiny_model_folder()))
    assert folder_checksum(str(folder)) != folder_checksum(str(tiny_model_folder(channels=1)))


def test_a_variant_beside_plain_weights_is_not_read(folder):
    expected, before = answer(folder), folder_checksum(str(folder))
    shutil.copy(folder / "unet" / PLAIN, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    edit_weights(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(answer(folder), expected)
    assert folder_checksum(str(folder)) == before


def test_the_name_of_the_chosen_variant_is_in_the_checksum(folder):
    before = folder_checksum(str(folder))
    plain = folder / "unet" / PLAIN
    checksums = {before}
    for variant in ("fp16", "ema"):
        plain = plain.rename(plain.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
        checksums.add(folder_checksum(str(folder)))
    assert len(checksums) == 3


def copied(*names):
    def prepare(folder):
        plain = folder / "unet" / PLAIN
        for name in names:
            shutil.copy(plain, plain.with_name(f"diffusion_pytorch_model.{name}"))
        if PLAIN.removeprefix("diffusion_pytorch_model.") not in names:
            plain.unlink()

    return prepare


def indexed(**index):
    def prepare(folder):
        (folder / "unet" / PLAIN).rename(folder / "unet" / "shard.safetensors")
        (folder / "unet" / f"{PLAIN}.index.json").write_text(json.dumps(index))

    return prepare


def both(folder):
    indexed(weight_map={"a": "shard.safetensors"})(folder)
    shutil.copy(folder / "unet" / "shard.safetensors", folder / "unet" / PLAIN)


SETS = {
    "two variants": (copied("fp16.safetensors", "ema.safetensors"), "one set of weights .*ema.*fp16"),
    "a file and shards": (both, "one set of weights .*index.json"),
    "an index of pickles": (indexed(weight_map={"a": "a.bin"}), "names? a.bin|name safetensors files.* got a.bin"),
    "an index that leads away": (indexed(weight_map={"a": "../a.safetensors"}), "files beside it, got ../a"),
    "an index of nothing": (indexed(weight_map={}), "expected a weight_map"),
    "an index of another kind": (indexed(weight_map=["shard.safetensors"]), "expected a weight_map"),
    "an index of numbers": (indexed(weight_map={"a": 3}), "expected a weight_map"),
    "a shard that is not there": (indexed(weight_map={"a": "b.safetensors"}), "lacks b.safetensors"),
    "only a pickled variant": (copied("fp16.bin"), "lacks unet/.*safetensors.*not read: .*fp16.bin"),
}


@pytest.mark.parametrize(("prepare", "message"), SETS.values(), ids=SETS)
def test_weights_that_are_not_clear_are_refused(folder, prepare, message):
    prepare(folder)
    for load in (DiffusersDenoiser.from_folder, folder_checksum):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(str(folder))


def test_an_index_of_other_tensors_is_refused(folder):
    indexed(weight_map={"a": "shard.safetensors"})(folder)
    with pytest.raises(ValueError, match="expected shards of the tensors that .* lists"):
        DiffusersDenoiser.from_folder(str(folder))


def latent(name, folder):
    """A latent pipeline as diffusers saves it."""
    vq = VQModel(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=4, sample_size=8)
    pipeline = DDPMPipeline.from_pretrained(folder)
    LDMPipeline(vqvae=vq, unet=pipeline.unet, scheduler=pipeline.scheduler).save_pretrained(folder)
    if name != "vqvae":
        (folder / "vqvae").rename(folder / name)
        edit(folder / "model_index.json", **{name: ["diffusers", "VQModel"], "vqvae": [None, None]})


@pytest.mark.parametrize(("name", "seen"), [*itertools.product(["vae", "vqvae", "movq"], ["folder", "index", "both"])])
def test_a_latent_pipeline_has_a_decoder_wherever_it_is_known_by(folder, name, seen):
    """By the decoder's folder or by what model_index.json names: it is never taken for one of pixels."""
    latent(name, folder)
    if seen == "folder":
        (folder / "model_index.json").unlink()
    elif seen == "index":
        shutil.rmtree(folder / name)
        for load in (DiffusersDenoiser.from_folder, folder_checksum, load_decoder):
            with pytest.raises(FileNotFoundError, match=f"expected the {name} of the pipeline .* lacks {name}/config"):
                load(str(folder))
        return
    decoder = load_decoder(str(folder))
    assert isinstance(decoder, Autoencoder) and decoder.decode(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert DiffusersDenoiser.from_folder(str(folder)).sites()


def test_a_component_that_is_none_makes_no_latent_pipeline(folder):
    edit(folder / "model_index.json", vae=[None, None])
    assert DiffusersDenoiser.from_folder(str(folder)).sites()
    assert isinstance(load_decoder(str(folder)), Pixels)


def refused(path, message):
    for load in (DiffusersDenoiser.from_folder, folder_checksum):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(str(path))


def test_paths_that_lead_to_no_folder(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "nowhere", "there is no folder .*nowhere; check the path")
    refused("google/ddpm-cifar10-32", "cache has no model of this name; .*: hf download google/ddpm-cifar10-32$")
    refused("~/models/mine", "such as /home/someone/models/mine")
    refused("~nobody-of-this-name/mine", "whose ~ stands for no home")
    refused(folder / "unet" / PLAIN, "got the file .*; give the folder")


def test_folders_that_are_parts_of_others(tmp_path, folder):
    refused(folder / "unet", f"lacks scheduler.*it is a part of a pipeline, give all of it: {folder}$")
    refused(folder / "scheduler", f"it is a part of a pipeline, give all of it: {folder}$")
    cache = tmp_path / "models--google--ddpm"
    snapshot = cache / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    refused(cache, "got the hub's cache .* it has none yet")
    folder.rename(snapshot)
    refused(cache, f"got the hub's cache of one, {cache}; give a folder in its snapshots: {snapshot}$")
    assert DiffusersDenoiser.from_folder(str(snapshot)).sites()


def test_a_network_that_was_saved_alone_lacks_a_scheduler(tmp_path, folder):
    UNet2DModel.from_pretrained(folder, subfolder="unet").save_pretrained(tmp_path / "alone")
    refused(tmp_path / "alone", "lacks scheduler_config.json; save one with pipeline")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b"[" * 100_000, b""], ids=["half", "list", "bytes", "deep", "empty"]
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_files_that_are_no_json_objects(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"expected (a )?JSON .*{name}"):
        DiffusersDenoiser.from_folder(str(folder))
