"""Files of tensors are whole or said not to be."""

import torch

from ptq_diffusion.artefact.tensors import holds_tensors, write_tensors


def test_a_file_cut_short_holds_no_tensors(tmp_path):
    """As a power cut leaves it where the disk keeps names and contents in different order."""
    path = tmp_path / "chunk.safetensors"
    assert not holds_tensors(path)
    write_tensors(path, {"x": torch.ones(3)})
    whole = path.read_bytes()
    assert holds_tensors(path) and list(tmp_path.iterdir()) == [path]
    for length in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert not holds_tensors(path)
