"""Training rows in memory, and written as a folder that `ratjax.data` trains on."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from ratjax.data import rows as storage


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Token rows of one length with their loss mask.

    Attributes:
      tokens: int32 [N, T].
      loss_mask: bool [N, T]: true where the token at t is a target, predicted from t - 1.
      index: how they were made: seed, tasks with their counts, eos_id, the tokenizer's sha256,
        the project's version.
    """

    tokens: Int32[np.ndarray, "N T"]
    loss_mask: Bool[np.ndarray, "N T"]
    index: dict[str, Any]


def write_rows(rows: Rows, folder: str | Path) -> None:
    """Writes a folder that `ratjax.data` reads, all or nothing.

    Args:
      rows: what to write; its index is kept in the folder's.
      folder: a new one, or an empty one.

    Raises:
      InputError: the folder holds something.
    """
    storage.write_rows(folder, rows.tokens, rows.loss_mask, **rows.index)
