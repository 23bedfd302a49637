"""What comes with the package is chosen by a name of its own, and any path is what it says."""

import pytest

from ptq_diffusion.artefact.bundle import Bundles


@pytest.fixture
def bundles(tmp_path):
    """Two folders with a card, one without, and a file outside of them."""
    for name in ("b", "a", "without"):
        (tmp_path / "home" / name).mkdir(parents=True)
    for name in ("home/a", "home/b", "."):
        (tmp_path / name / "README.md").write_text("a card")
    return Bundles(tmp_path / "home")


def test_a_name_is_its_folder_or_a_file_of_it(bundles):
    assert bundles.names() == ["bundled:a", "bundled:b"]
    assert bundles.path("bundled:a") == bundles.home / "a"
    assert bundles.path("bundled:b", "reference.safetensors") == bundles.home / "b" / "reference.safetensors"


@pytest.mark.parametrize("given", ["a", "./a", "/nowhere/a", "C:a"])
def test_any_other_path_is_left_alone(bundles, given):
    assert str(bundles.path(given, "reference.safetensors")) == given.removeprefix("./")


@pytest.mark.parametrize(
    "given", ["bundled:c", "bundled:without", "bundled:", "bundled:..", "bundled:a/../..", None, 3]
)
def test_another_name_is_refused_with_those_there_are(bundles, given):
    with pytest.raises(ValueError, match="expected a path, or one of bundled:a, bundled:b, got"):
        bundles.path(given)
