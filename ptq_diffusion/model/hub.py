"""Model folders on this machine, those in the hub's local cache by the names that they have on the hub."""

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ptq_diffusion.artefact.bundle import Bundles

MODELS = Bundles(Path(__file__).parent)
"""The models that come with the package."""
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def local_folder(path: str) -> Path:
    """The folder of a model. Nothing is downloaded.

    Args:
        path: the folder, `bundled:NAME`, or a name on the hub, `org/name`, whose files are in the hub's local cache
            as `from_pretrained` and `hf download` leave them.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a file or a folder of the hub's cache around the model's, or no model of this name is bundled.
    """
    folder = MODELS.path(path)
    if HUB_NAME.fullmatch(str(folder)) and not folder.exists():
        folder = _cached(str(folder))
    _require_folder(folder)
    return folder


def _cached(name: str) -> Path:
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, there is no folder {name}, and the hub's local cache "
            f"has no model of this name; where there is a network, download it first: hf download {name}"
        ) from error


def _require_folder(folder: Path) -> None:
    """Refuse what is no folder, or a folder of the hub's cache around the model's."""
    if str(folder).startswith("~"):
        raise FileNotFoundError(
            f"expected a folder, got {folder}, whose ~ stands for no home here; write its path in full, such as "
            f"{os.path.expanduser(folder)}"
        )
    if folder.is_file():
        raise ValueError(f"expected a model folder, got the file {folder}; give the folder that a pipeline saved")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, there is no folder {folder}; check the path"
        )
    if (folder / "snapshots").is_dir():
        snapshots = sorted(str(snapshot) for snapshot in (folder / "snapshots").iterdir() if snapshot.is_dir())
        raise ValueError(
            f"expected a model folder, got the hub's cache of one, {folder}; give a folder in its snapshots: "
            f"{', '.join(snapshots[:3]) or 'it has none yet, download the model first'}"
        )
