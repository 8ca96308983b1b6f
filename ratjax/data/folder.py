"""What every data folder shares: an `index.json`, written last, and the errors of reading one."""

import hashlib
import os
import pathlib
from typing import Any

from ratjax.errors import InputError
from ratjax.files import read_json

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
        return read_json(path)
    except FileNotFoundError:
        what = "has no index.json" if path.parent.is_dir() else "does not exist"
        raise MissingDataError(f"{folder}: data folder {what}; make it first") from None


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
