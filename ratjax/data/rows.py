"""Rows: whole training examples of one length, each with its own loss mask.

A folder of `tokens.npy` (int32 [N, T]), `loss_mask.npy` (bool [N, T], true where the token
at that very position is to be predicted) and `index.json`.
"""

import os
import pathlib

import numpy as np
from jaxtyping import Bool, Int32, Int64

from ratjax.data.batch import Batch
from ratjax.data.folder import INDEX, MissingDataError, fingerprint, read_index
from ratjax.errors import InputError
from ratjax.files import new_folder, write_json

FORMAT = 1


def write_rows(
    folder: str | os.PathLike,
    tokens: Int32[np.ndarray, "N T"],
    loss_mask: Bool[np.ndarray, "N T"],
    **facts,
) -> None:
    """Writes a folder of rows, all or nothing; `facts` go into its index beside the sizes.

    Raises:
      InputError: the folder exists and is not empty.
    """
    rows, length = tokens.shape
    with new_folder(folder) as part:
        np.save(part / "tokens.npy", tokens)
        np.save(part / "loss_mask.npy", loss_mask)
        write_json(part / INDEX, {"format": FORMAT, "rows": rows, "length": length, **facts})


class Rows:
    """A folder of rows, read through memory maps.

    Args:
      folder: where the rows are.
      sequence_length: T; the rows' own length must equal it.

    Raises:
      InputError: files that are missing, truncated, of other types, empty, or of another length.
    """

    def __init__(self, folder: str | os.PathLike, sequence_length: int):
        self.folder = str(folder)
        files = [pathlib.Path(folder) / name for name in ("tokens.npy", "loss_mask.npy")]
        self.index = read_index(folder)
        self.tokens, self.loss_mask = (_open(path) for path in files)
        tokens, mask = self.tokens, self.loss_mask
        if tokens.ndim != 2 or tokens.dtype != np.int32:
            raise InputError(
                f"{files[0]}: must be int32 [rows, length], is {tokens.dtype} {list(tokens.shape)}"
            )
        if mask.shape != tokens.shape or mask.dtype != np.bool_:
            raise InputError(
                f"{files[1]}: must be bool {list(tokens.shape)} as tokens.npy is, "
                f"is {mask.dtype} {list(mask.shape)}"
            )
        if list(tokens.shape) != [self.index.get("rows"), self.index.get("length")]:
            raise InputError(
                f"{folder}: tokens.npy is {list(tokens.shape)}, which is not what index.json says; "
                "make the folder again"
            )
        if not len(tokens):
            raise InputError(f"{folder}: holds no rows; make it again")
        if tokens.shape[1] != sequence_length:
            raise InputError(
                f"{folder}: its rows have {tokens.shape[1]} tokens, but the stage's "
                f"sequence_length is {sequence_length}; make them equal"
            )
        self.fingerprint = fingerprint(*files)
        self.most_targets = int(mask[:, 1:].sum(axis=1).max())

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, rows: Int64[np.ndarray, " B"]) -> Batch:
        """The rows as inputs and targets; the last position has nothing left to predict."""
        tokens, mask = self.tokens[rows], self.loss_mask[rows]
        starts = np.zeros(tokens.shape, bool)
        starts[:, 0] = True
        return Batch(tokens, shift(tokens), shift(mask), starts)


def shift(array: np.ndarray) -> np.ndarray:
    """Each position's successor along the second axis; zero (false) at the end."""
    result = np.zeros_like(array)
    result[:, :-1] = array[:, 1:]
    return result


def _open(path: pathlib.Path) -> np.ndarray:
    try:
        # A plain view: memmap objects make every look-up slower.
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: missing; make the folder again") from None
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not readable ({reason}); make the folder again") from None
