"""Writes files whole or not at all, whatever interrupts it, and says in one message what a disk refuses."""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.multiprocessing.spawn import ProcessException

MANIFEST = "files.json"
REPLACED = ".replaced"
"""The ending of a folder that is out of its place, to be removed."""
FULL = {errno.ENOSPC, errno.EDQUOT}
LOCKED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it first, brought to the disk, then renamed; the last process wins."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(content)
    _sync(beside)
    os.replace(beside, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or is nested too deeply to be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); make the file again") from error


def link_files(folder: Path, place: Path) -> None:
    """Give the files of a folder a second name in another, which takes no room; a copy where the disk has no links."""
    place.mkdir(exist_ok=True)
    for file in folder.iterdir():
        beside = place / f"{file.name}.tmp"
        beside.unlink(missing_ok=True)
        try:
            os.link(file, beside)
        except OSError:
            shutil.copyfile(file, beside)
        os.replace(beside, place / file.name)
        # Two names of one file are left as they are by the system, and both stay.
        beside.unlink(missing_ok=True)


def write_manifest(folder: Path, without: Collection[str]) -> None:
    """Write the names and sizes of all files below a folder, except below the entries named `without`."""
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    listed = (path for path in files if path.parts[0] not in without)
    write_json(folder / MANIFEST, {path.as_posix(): (folder / path).stat().st_size for path in listed})


def check_whole(folder: Path) -> None:
    """Compare a complete folder with its manifest.

    It is not made again by itself: what was made from it before the damage is in question too, so a person decides.

    Raises:
        ValueError: a file is missing or has another size than when it was written, or the manifest is broken.
    """
    manifest, remedy = folder / MANIFEST, f"remove {folder}, and the same command makes it again"
    try:
        sizes = read_json(manifest) if manifest.is_file() else {MANIFEST: "some"}
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from error
    if not isinstance(sizes, dict):
        raise ValueError(f"expected the names and sizes of files in {manifest}, got something else; {remedy}")
    for name, size in sizes.items():
        path = folder / name
        actual = path.stat().st_size if path.is_file() else "no file"
        if actual != size:
            raise ValueError(f"expected {path} as it was written, with {size} bytes, got {actual}; {remedy}")


def replace(partial: Path, final: Path) -> None:
    """Give a folder its final name; what had that name before is removed once it is out of the way."""
    before = final.with_suffix(REPLACED)
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():
        os.replace(final, before)
    os.replace(partial, final)
    _sync(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Bring all files below a folder to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a folder and, within the context, say of a full or locked disk which folder it holds and what to do.

    Raises:
        OSError: the folder cannot be made or written. Other errors pass through.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError, ProcessException) as error:
        code = _refusal(error, folder)
        if code is None:
            raise
        raise OSError(
            f"expected to write into {folder}, got: {os.strerror(code)}; make room or choose another place with "
            "outputs=FOLDER; what was finished is kept, and the same command goes on from it"
        ) from error


def _refusal(error: Exception, folder: Path) -> int | None:
    """The number of the system's error if it is about writing into the folder; None otherwise."""
    if isinstance(error, OSError):
        place = Path(os.fsdecode(error.filename)) if error.filename else folder
        ours = place.is_relative_to(folder) or folder.is_relative_to(place)
        return error.errno if error.errno in FULL or (error.errno in LOCKED and ours) else None
    # safetensors and the processes of other devices pass on the system's error as text.
    match = re.search(r"os error (\d+)|\[Errno (\d+)\]", str(error))
    code = int(match[1] or match[2]) if match else None
    return code if code in FULL else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
