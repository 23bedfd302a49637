"""Model folders that a test may break."""

import shutil

import pytest


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(tiny_model_folder(), tmp_path / "model")
