"""Digests: what changes them, what does not, and how often a file is read for them."""

import hashlib

import pytest
import torch

from ptq_diffusion.artefact import digest
from ptq_diffusion.artefact.digest import files_digest, tensors_digest


@pytest.fixture
def opened(monkeypatch):
    """The files that are opened for a digest, in order."""
    names = []

    def noted(name, *mode):
        names.append(name)
        return open(name, *mode)

    monkeypatch.setattr(digest, "open", noted, raising=False)
    return names


def test_files_are_read_once_until_one_changes(tmp_path, opened):
    files = [tmp_path / "a", tmp_path / "b"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (digest.PIECE + 1))
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    assert files_digest(files) == files_digest(files) == expected
    assert opened == [str(file) for file in files]
    files[1].write_bytes(b"other")
    assert files_digest(files) != expected
    assert len(opened) == 4
    files[1].unlink()
    with pytest.raises(FileNotFoundError):
        files_digest(files)


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_tensors_of_every_dtype_have_a_digest(dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    own = tensors_digest(tensors)
    assert len(own) == 16 and own == tensors_digest(dict(reversed(tensors.items())))
    assert own == tensors_digest(tensors | {"a": tensors["a"].T.contiguous().T})
    others = [
        {"a": tensors["a"]},
        tensors | {"b": tensors["b"] + 1},
        tensors | {"a": tensors["a"].T},
        {"c": tensors["a"], "b": tensors["b"]},
        tensors | {"b": tensors["b"].to(torch.float64)},
    ]
    assert len({own, *map(tensors_digest, others)}) == 6
