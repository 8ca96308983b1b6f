"""Reading and writing safetensors files piece by piece.

A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes. The
`safetensors` package reads slices too, but has no NumPy bfloat16 and writes only what is
in memory as a whole; both are needed here.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ratjax.convert.tensors import DTYPES, Tensor
from ratjax.errors import InputError

ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4} | {
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # the format's own limit


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """Describes the tensors of a file.

    Raises:
      InputError: the file is missing, truncated, or no safetensors file.
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(total - 8, LONGEST_HEADER):
                raise InputError(f"{path}: truncated, or no safetensors file; fetch it again")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(f"{path}: header not readable; fetch the file again") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    header.pop("__metadata__", None)
    base = 8 + length
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
            begin, end = map(int, entry["data_offsets"])
        except (TypeError, KeyError, ValueError):
            raise InputError(f"{path}: the header's entry for {name} is damaged") from None
        if base + end > total:
            raise InputError(
                f"{path}: truncated: has {total} bytes, {name} ends at {base + end}; fetch it again"
            )
        if dtype not in ITEM_BYTES or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
            raise InputError(f"{path}: the header's entry for {name} is damaged")
        tensors[name] = Tensor(shape, dtype, _mapper(path, dtype, shape, base + begin))
    return tensors


def _mapper(path: pathlib.Path, dtype: str, shape: tuple[int, ...], offset: int):
    def view() -> np.ndarray:
        return np.memmap(path, DTYPES[dtype], "r", offset, shape)

    return view


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"doubled in the header: {name}")
    return dict(pairs)


def write_file(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file from arrays that are made one at a time.

    Args:
      path: the file.
      shapes: shape and dtype code of every tensor, in order.
      arrays: the tensors, in that order.
      metadata: strings for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (shape, dtype) in shapes.items():
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array, (shape, dtype) in zip(arrays, shapes.values(), strict=True):
            array = np.ascontiguousarray(array, DTYPES[dtype])
            assert array.shape == tuple(shape), (array.shape, shape)
            file.write(array.reshape(-1).view(np.uint8).data)
