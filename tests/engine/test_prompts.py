"""Prompts are encoded chunk by chunk, by any number of devices, and read row by row."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.command.check.condition import check_condition
from ptq_diffusion.engine import conditions
from ptq_diffusion.engine.conditions import EncodedPrompts, save_order, stored_prompts
from ptq_diffusion.model import Condition, DiffusersDenoiser
from ptq_diffusion.model.text.encoders import AT_ONCE, TextEncoders
from ptq_diffusion.stage.prompts import EncodeTexts
from tests.experiments import composed
from tests.model import pipelines

pytestmark = pytest.mark.filterwarnings("ignore")
COUNT = 2 * AT_ONCE + 3
TEXTS = [f"a {'red ' * (j % 4)}cat {chr(ord('a') + j % 26)}{chr(ord('a') + j // 26)}" for j in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of prompts: SDXL, of two text encoders."""
    place = tmp_path_factory.mktemp("sdxl")
    pipelines.sdxl(place).save_pretrained(place)
    return place


@pytest.fixture
def words(folder, tmp_path):
    """An experiment on prompts of three chunks, the first of them twice."""
    (tmp_path / "prompts.txt").write_text("\n".join([*TEXTS, TEXTS[0]]))
    prompts = ["condition=prompts", f"condition.source.path={tmp_path / 'prompts.txt'}"]
    return ["goal=prompts", f"model.path={folder}", "condition.negative_prompt=a hat", *prompts]


def contents(artefact):
    return {str(path.relative_to(artefact)): path.read_bytes() for path in artefact.rglob("*") if path.is_file()}


def test_a_negative_prompt_that_nothing_reads_is_refused(make, words):
    with pytest.raises(ValueError, match="negative_prompt, got condition.guidance.scale=1.*; leave it out"):
        make(*words, "condition.guidance.scale=1")
    make(*words, "condition.guidance.scale=1", "noise.guidance=2")


def test_few_prompts_are_said_where_images_are_drawn(words, folder, tmp_path):
    said, cfg = [], composed(*words, "model=diffusers")
    shop = SimpleNamespace(runtime=SimpleNamespace(say=said.append))
    for drawn in (False, True):
        check_condition(cfg, DiffusersDenoiser.from_folder(str(folder)), shop, drawn)
        assert len(said) == drawn
    assert said == [f"condition: {COUNT + 1} prompts for {cfg.images} images of a seed, they repeat in order"]


class Killed(BaseException):
    """What no code catches."""


def test_a_run_that_was_killed_goes_on_behind_the_last_chunk_to_the_same_bytes(make, words, tmp_path, monkeypatch):
    expected = contents(make(*words))
    again, forward, done = [*words, f"outputs={tmp_path / 'again'}"], EncodeTexts.forward, []

    def seen(work, chunk, device):
        if len(done) == 2:
            raise Killed
        done.append(chunk.first)
        return forward(work, chunk, device)

    monkeypatch.setattr(EncodeTexts, "forward", seen)
    with pytest.raises(Killed):
        make(*again)
    assert done == [0, AT_ONCE]
    done.clear()
    assert contents(make(*again)) == expected
    assert done == [2 * AT_ONCE]


def test_two_devices_and_blocks_that_are_lent_leave_the_bytes_of_one(imported, make, words, tmp_path):
    shared = ["runtime.devices=2", "runtime.offload=block", f"outputs={tmp_path / 'shared'}"]
    assert contents(make(*words, *shared)) == contents(make(*words))


def test_rows_are_those_that_the_encoders_make_whatever_comes_behind_them(make, words, folder, tmp_path):
    """Of the last file, which has fewer rows, too; and a prompt that comes twice has one row."""
    artefact, encoders = make(*words), TextEncoders(str(folder))
    source = EncodedPrompts.load(artefact)
    first, none = encoders.rows_and_negative(TEXTS[:AT_ONCE], "a hat")
    last = encoders.rows(TEXTS[2 * AT_ONCE :])
    same(source.of(0, range(AT_ONCE), "images"), first)
    same(source.of(0, [2 * AT_ONCE + 1, 1, COUNT], "images").rows([0]), last.rows([1]))
    same(source.of(0, [2 * AT_ONCE + 1, 1, COUNT], "images").rows([1, 2]), first.rows([1, 0]))
    same(source.null(), none)
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS[:3]))
    same(EncodedPrompts.load(make(*words)).of(0, range(3), "images"), first.rows(slice(3)))


def same(condition, other):
    tensors, others = condition.tensors(), other.tensors()
    assert tensors.keys() == others.keys() == {"embeddings", "pooled", "ids"}
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_no_file_is_opened_but_those_of_the_rows_that_are_asked_for(tmp_path, monkeypatch):
    folder = tmp_path / conditions.ENCODED
    folder.mkdir()
    rows = Condition(embeddings=torch.arange(24.0).reshape(8, 3, 1), mask=torch.arange(24).reshape(8, 3))
    for place in range(4):
        part = rows.rows(slice(2 * place, 2 * place + 2))
        negative = Condition(embeddings=-torch.ones(1, 3, 1), mask=torch.ones(1, 3)) if place == 0 else None
        write_tensors(folder / f"{place}.safetensors", stored_prompts(part, negative))
    save_order(tmp_path, range(8), 2)
    source, opened, safe_open = EncodedPrompts.load(tmp_path, 2.5), [], conditions.safe_open

    def seen(file, framework):
        opened.append(file.stem)
        return safe_open(file, framework=framework)

    monkeypatch.setattr(conditions, "safe_open", seen)
    indices = [5, 2, 2, 13, 4]
    read, expected = source.of(0, indices, "images"), rows.rows([index % 8 for index in indices])
    assert opened == ["1", "2"] and read.scale.tolist() == [2.5] * 5
    assert torch.equal(read.embeddings, expected.embeddings) and torch.equal(read.mask, expected.mask)
    assert source.null().embeddings.tolist() == [[[-1.0]] * 3] and opened[2:] == ["0"]
    assert set(load_file(folder / "1.safetensors")) == {"prompt/embeddings", "prompt/mask"}
