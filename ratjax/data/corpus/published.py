"""Token streams that others published, read where they lie: only an index is written.

AI2's files of OLMo's training data end in `.npy` and are mostly none: they hold tokens and
nothing else, little-endian, uint32 for OLMo2 and uint16 for vocabularies below 2^16. Files that
do begin with NumPy's header are told from those by its first bytes.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from ratjax.data.folder import INDEX, MissingDataError
from ratjax.data.stream import DTYPES, FORMAT
from ratjax.errors import InputError, check_choice
from ratjax.files import write_json

ENDINGS = (".npy", ".bin")
MAGIC = b"\x93NUMPY"
LOOK = 1 << 20  # tokens of each file that are checked


def index_published(
    names: Sequence[str],
    target: str | os.PathLike | None,
    eos_id: int,
    vocab_size: int,
    dtype: str | None = None,
    write: bool = True,
) -> dict:
    """Writes the `index.json` by which `Stream` reads published files.

    Args:
      names: files, patterns, or folders (searched to the bottom for `.npy` and `.bin`); the order
        of the names, and of the sorted files of each, is the stream's.
      target: folder of the index. None: the one folder that is named.
      eos_id: the token after each document.
      vocab_size: of the tokenizer; larger tokens tell of another one, or of another type.
      dtype: `uint32` or `uint16` for files without a header. None: uint16 where the vocabulary
        fits into it.
      write: False only checks.

    Returns:
      The index.

    Raises:
      MissingDataError: a name that stands for no file.
      InputError: files that hold no such tokens, or a folder that has an index already.
    """
    if target is None:
        if len(names) != 1 or not pathlib.Path(names[0]).is_dir():
            raise InputError(f"target=None: name a folder for the index of {', '.join(names)}")
        target = names[0]
    if not 0 <= eos_id < vocab_size:
        raise InputError(f"eos_id={eos_id}: outside the vocabulary of {vocab_size}")
    folder = pathlib.Path(target)
    if (folder / INDEX).exists():
        raise InputError(f"{folder / INDEX}: exists; remove it, or choose another folder")
    headerless = dtype or ("uint16" if vocab_size <= 1 << 16 else "uint32")
    check_choice("dtype", headerless, DTYPES)
    files, dtypes, seen_eos = [], set(), False
    for path in [path for name in names for path in _find(name)]:
        kind, offset, tokens = _layout(path, headerless)
        seen_eos |= _check(path, kind, offset, tokens, eos_id, vocab_size)
        dtypes.add(kind)
        near = path.is_relative_to(folder.absolute())
        name = str(path.relative_to(folder.absolute()) if near else path)
        files.append({"name": name, "tokens": tokens, "offset": offset})
    if len(dtypes) > 1:
        raise InputError(f"{', '.join(names)}: files of both uint16 and uint32; index them apart")
    if not seen_eos:
        raise InputError(
            f"eos_id={eos_id}: not among the first tokens of any of the {len(files)} files; they "
            "end their documents with another token, or are of another dtype"
        )
    (kind,) = dtypes
    index = {"format": FORMAT, "eos_id": eos_id, "dtype": kind, "vocab_size": vocab_size}
    index["files"] = files
    if write:
        write_json(folder / INDEX, index)
    return index


def _find(name: str) -> list[pathlib.Path]:
    path = pathlib.Path(name).expanduser().absolute()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix in ENDINGS and p.is_file()]
    elif path.is_file():
        found = [path]
    else:
        found = list(pathlib.Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        raise MissingDataError(
            f"{name}: no such file, and no folder of {' or '.join(ENDINGS)} files"
        )
    return sorted(found)


def _layout(path: pathlib.Path, headerless: str) -> tuple[str, int, int]:
    """Type, bytes before the first token, and number of tokens."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            kind, offset = headerless, 0
        else:
            file.seek(0)
            try:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, found = read(file)
            except ValueError as error:
                raise InputError(f"{path}: damaged header ({error})") from None
            kind = next((name for name, dtype in DTYPES.items() if dtype == found), None)
            if kind is None or len(shape) != 1:
                raise InputError(
                    f"{path}: must hold one row of {' or '.join(DTYPES)}, holds {found} {shape}"
                )
            offset = file.tell()
    tokens, rest = divmod(size - offset, DTYPES[kind].itemsize)
    if rest or (offset and tokens != shape[0]):
        raise InputError(f"{path}: {size} bytes are no whole number of {kind}; it was truncated")
    if not tokens:
        raise InputError(f"{path}: is empty; leave it out")
    return kind, offset, tokens


def _check(
    path: pathlib.Path, kind: str, offset: int, tokens: int, eos_id: int, vocab_size: int
) -> bool:
    """Looks at the first tokens: raises if they cannot be tokens, and tells if EOS is there."""
    first = np.memmap(path, DTYPES[kind], "r", offset, (min(tokens, LOOK),))
    other = next(name for name in DTYPES if name != kind)
    if first.max() >= vocab_size:
        raise InputError(
            f"{path}: holds token {first.max()} as {kind}, beyond the vocabulary of {vocab_size}; "
            f"it was made with another tokenizer, or is {other} (dtype)"
        )
    if kind == "uint16" and tokens > 2 and not first[1::2].any():
        raise InputError(f"{path}: every second {kind} is 0; it is {other}: say so with dtype")
    return bool((first == eos_id).any())
