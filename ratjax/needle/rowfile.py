"""Training rows as a folder: tokens.npy, loss_mask.npy, index.json."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from ratjax.errors import InputError

FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Token rows of one length with their loss mask.

    Attributes:
      tokens: int32 [N, T].
      loss_mask: bool [N, T]: true where the token at t is a target, predicted from t - 1.
      index: how they were made: rows, length, seed, tasks with their counts, eos_id, the
        tokenizer's sha256, the project's version.
    """

    tokens: Int32[np.ndarray, "N T"]
    loss_mask: Bool[np.ndarray, "N T"]
    index: dict[str, Any]


def write_rows(rows: Rows, folder: str | Path) -> Path:
    """Writes the folder under another name and renames it, so that it is whole or absent.

    Args:
      rows: what to write.
      folder: a new one, or an empty one.

    Raises:
      InputError: the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"rows={str(folder)!r}: exists already; remove it or name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        np.save(unfinished / "tokens.npy", rows.tokens)
        np.save(unfinished / "loss_mask.npy", rows.loss_mask)
        text = json.dumps({"format": FORMAT, **rows.index}, indent=2)
        (unfinished / "index.json").write_text(text + "\n", "utf-8")
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def read_rows(folder: str | Path) -> Rows:
    """The rows of a folder; the arrays stay on disk until they are read.

    Raises:
      InputError: not a folder of rows, rows of an unknown format, or arrays that do not belong
        together.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        loss_mask = np.load(folder / "loss_mask.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"rows={str(folder)!r}: no complete folder of rows ({error}); build them again"
        ) from None
    if index.get("format") != FORMAT:
        raise InputError(
            f"rows={str(folder)!r}: format {index.get('format')}, this version reads {FORMAT}; "
            "build them again"
        )
    if tokens.shape != loss_mask.shape or tokens.shape != (index["rows"], index["length"]):
        raise InputError(
            f"rows={str(folder)!r}: tokens {tokens.shape} and loss_mask {loss_mask.shape} do not "
            "fit index.json; build them again"
        )
    return Rows(tokens, loss_mask, index)
