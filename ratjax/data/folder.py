"""What every data folder shares: an `index.json`, written last, and the errors of reading one."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from ratjax.errors import InputError

INDEX = "index.json"
SAMPLE = 1 << 16


class MissingDataError(InputError):
    """A data folder that does not exist (a dry run reports it and goes on)."""


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """The folder's `index.json`.

    Raises:
      MissingDataError: there is no such folder, or no index in it.
      InputError: the index is not a JSON object.
    """
    path = pathlib.Path(folder) / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "has no index.json" if path.parent.is_dir() else "does not exist"
        raise MissingDataError(f"{folder}: data folder {what}; make it first") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); make the folder again") from None
    if not isinstance(index, dict):
        raise InputError(f"{path}: must hold a JSON object; make the folder again")
    return index


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary folder that takes the name `folder` if the block succeeds, and else vanishes.

    Raises:
      InputError: `folder` exists and is not empty.
    """
    target = pathlib.Path(folder)
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{folder}: exists and is not empty; remove it or choose another name")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_index(folder: pathlib.Path, index: dict[str, Any]) -> None:
    """Writes `index.json`: last, so that its presence means that the rest is there."""
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def fingerprint(*files: pathlib.Path) -> str:
    """A digest of each file's size, first and last 64 KiB: enough to notice other data."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]
