"""Prompts are encoded as the stock pipeline encodes them, with nothing of it but its text encoders."""

import importlib.util
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from ptq_diffusion.engine.memory.lending import Lent, lend_blocks
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.text.encoders import AT_ONCE, TextEncoders
from ptq_diffusion.model.text.files import text_block, text_checksum, text_sizes
from tests.model import pipelines
from tests.steps import at

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = ["a cat", "a red dog on a hill of sand", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name in ("stable_diffusion", "sdxl"):
        made[name] = tmp_path_factory.mktemp(name)
        getattr(pipelines, name)(made[name]).save_pretrained(made[name])
    return made


@torch.no_grad()
@pytest.mark.parametrize("negative", ["", "a hat"])
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_embeddings_are_those_of_the_pipeline(folders, name, negative):
    rows, none = TextEncoders(str(folders[name])).rows_and_negative(PROMPTS, negative)
    stock = DiffusionPipeline.from_pretrained(folders[name])
    assert (len(rows), len(none)) == (3, 1)
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    for place, prompt in enumerate(PROMPTS):
        expected = stock.encode_prompt(prompt, negative_prompt=negative or None, **options)
        pairs = [(rows.embeddings[place], expected[0]), (none.embeddings[0], expected[1])]
        if name == "sdxl":
            pairs += [(rows.pooled[place], expected[2]), (none.pooled[0], expected[3])]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-6)
    denoiser = DiffusersDenoiser.from_folder(str(folders[name]))
    assert set(rows.tensors()) == set(none.tensors()) == set(denoiser.needs)
    assert denoiser.predict(torch.zeros(3, *denoiser.shape), at(5), rows).m.isfinite().all()


@torch.no_grad()
def test_time_ids_of_sdxl_are_those_of_an_image_of_its_own_size(folders):
    stock = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    expected = stock._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 5)
    rows, none = TextEncoders(str(folders["sdxl"])).rows_and_negative(PROMPTS, "")
    assert torch.equal(rows.ids, expected.expand(3, 6)) and torch.equal(none.ids, expected)


def same(condition, other):
    tensors, others = condition.tensors(), other.tensors()
    return tensors.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_no_bit_of_a_row_depends_on_the_prompts_behind_it_or_on_a_negative_one(folders, name):
    encoders, texts = TextEncoders(str(folders[name])), [f"a {'red ' * (j % 3)}cat" for j in range(AT_ONCE)]
    full, few = encoders.rows(texts), encoders.rows(texts[:3])
    assert (len(full), len(few)) == (AT_ONCE, 3) and same(few, full.rows(slice(3)))
    rows, none = encoders.rows_and_negative(texts, "a hat")
    assert same(rows, full) and same(none, encoders.rows_and_negative(texts[:1], "a hat")[1])


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_encoders_whose_blocks_are_lent_give_the_bits_of_whole_ones(folders, name):
    path = str(folders[name])
    whole, lent = TextEncoders(path), TextEncoders(path)
    lend_blocks(lent, lent.blocks())
    expected, others = (each.rows_and_negative(PROMPTS, "a hat") for each in (whole, lent))
    assert all(map(same, others, expected))
    blocks = [module for module in lent.modules() if isinstance(module, Lent)]
    assert len(blocks) == 2 * len(lent.networks) == len({text_block(name) for name in text_sizes(path)} - {None})


def test_the_bytes_of_encoders_are_those_of_the_weights_that_are_loaded(folders, tmp_path):
    """Of two variants one is loaded."""
    folder = shutil.copytree(folders["sdxl"], tmp_path / "model")
    expected = sum(parameter.nbytes for parameter in TextEncoders(str(folder)).parameters())
    assert sum(text_sizes(str(folder)).values()) == expected
    for home in ("text_encoder", "text_encoder_2"):
        shutil.copy(folder / home / "model.safetensors", folder / home / "model.fp16.safetensors")
    assert sum(text_sizes(str(folder)).values()) == expected


def test_encoders_are_float32_whatever_the_files_have(folders, tmp_path):
    stock = DiffusionPipeline.from_pretrained(folders["stable_diffusion"], torch_dtype=torch.float16)
    stock.save_pretrained(tmp_path)
    encoders = TextEncoders(str(tmp_path))
    assert {parameter.dtype for parameter in encoders.parameters()} == {torch.float32}
    sizes = text_sizes(str(tmp_path))
    assert sum(sizes.values()) == sum(parameter.nbytes for parameter in encoders.parameters())
    assert encoders.rows(PROMPTS).embeddings.dtype == torch.float32


def test_the_checksum_is_of_text_alone_and_the_models_of_all_else(folders, tmp_path):
    folder = shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    before = text_checksum(str(folder))
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    (folder / "text_encoder" / "pytorch_model.bin").write_text("not read")
    assert text_checksum(str(folder)) == before
    file = next((folder / "tokenizer").glob("*.json"))
    file.write_text(file.read_text() + " ")
    assert text_checksum(str(folder)) != before


def without_encoder(folder):
    pipelines.edit(folder / "model_index.json", text_encoder=[None, None])


def without_files(folder):
    shutil.rmtree(folder / "text_encoder")


def pickled(folder):
    for file in (folder / "text_encoder").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def of_a_user(folder):
    index = json.loads((folder / "model_index.json").read_text())
    pipelines.edit(folder / "model_index.json", text_encoder=["os", index["text_encoder"][1]])


def scheduled_by_a_user(folder):
    pipelines.edit(folder / "model_index.json", scheduler=["os", "DDIMScheduler"])


def custom(folder):
    pipelines.edit(folder / "model_index.json", _class_name="MyPipeline")


BROKEN = {
    "none": (without_encoder, "expected a text_encoder in .*set condition=labels"),
    "no files": (without_files, "expected the text_encoder of the pipeline in .* lacks its files"),
    "pickles": (pickled, "lacks safetensors weights"),
    "another library": (of_a_user, "expected the text_encoder of .* to be of transformers, got one of os"),
    "a scheduler of another": (scheduled_by_a_user, "expected the scheduler of .* to be of diffusers, got one of os"),
    "another pipeline": (custom, "expected a pipeline of diffusers that encodes prompts .*, got MyPipeline"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_folders_that_cannot_encode_are_refused_in_one_line(folders, tmp_path, change, message):
    folder = shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        TextEncoders(str(folder))
    assert "\n" not in str(caught.value)


def test_a_network_that_reads_none_and_nothing_to_encode_with(folders, tiny_model_folder, monkeypatch):
    with pytest.raises(ValueError, match="expected a network that reads prompts .*; set condition=labels or none"):
        TextEncoders(str(tiny_model_folder()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"expected transformers to encode prompts.*pip install -e '\.\[text\]'"
    ):
        TextEncoders(str(folders["stable_diffusion"]))
