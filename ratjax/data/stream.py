"""Token streams: documents end to end, each followed by EOS, cut into windows when read.

A folder whose `index.json` names files of little-endian tokens, which lie in it or elsewhere:
`{"format": 1, "eos_id":, "dtype": "uint32", "files": [{"name":, "tokens":, "offset": 0}]}`,
with `vocab_size` and `documents` where they are known. `dtype` and `offset` (bytes before a
file's first token) may be left out.
"""

import os
import pathlib
from collections.abc import Iterable

import numpy as np
import tokenizers
from jaxtyping import Int64

from ratjax.data.batch import Batch
from ratjax.data.encoding import TokenWriter, encode
from ratjax.data.folder import INDEX, MissingDataError, fingerprint, read_index
from ratjax.errors import InputError, check_choice
from ratjax.files import new_folder, write_json

FORMAT = 1
DTYPES = {"uint32": np.dtype("<u4"), "uint16": np.dtype("<u2")}


def write_stream(
    folder: str | os.PathLike,
    texts: Iterable[str],
    tokenizer: tokenizers.Tokenizer,
    eos_id: int,
    file_tokens: int = 1 << 28,
) -> int:
    """Tokenizes documents into a stream, all or nothing, in this process.

    What does not fit into memory, or takes long, is for `ratjax.data.corpus`.

    Args:
      folder: where to write.
      texts: the documents, in order. Empty ones are left out.
      tokenizer: applied without its special tokens, to many documents at a time.
      eos_id: token put after every document.
      file_tokens: a new file is begun after the document that reaches this size.

    Returns:
      The number of tokens written.

    Raises:
      InputError: no text at all, or a folder that exists and is not empty.
    """
    files, documents = {}, 0
    with new_folder(folder) as part:
        encoded = encode(texts, tokenizer)
        following = next(encoded, None)
        while following is not None:
            name = f"{len(files):05d}.bin"
            with TokenWriter(part / name, eos_id) as file:
                while following is not None and file.tokens < file_tokens:
                    file.add(following[1])
                    following = next(encoded, None)
            files[name] = file.tokens
            documents += file.documents
        if not files:
            raise InputError(f"{folder}: there is no text to write into it")
        vocab_size = tokenizer.get_vocab_size()
        write_index(part, files, eos_id, vocab_size=vocab_size, documents=documents)
    return sum(files.values())


def write_index(folder: pathlib.Path, files: dict[str, int], eos_id: int, **facts) -> None:
    """Writes the index of files of uint32 tokens, at once; `files` gives the tokens of each."""
    listed = [{"name": name, "tokens": tokens} for name, tokens in files.items()]
    facts = {"format": FORMAT, "eos_id": eos_id, "dtype": "uint32", **facts}
    write_json(folder / INDEX, {**facts, "files": listed})


class Stream:
    """A folder with a token stream, read through memory maps.

    Windows of `sequence_length` inputs follow each other without overlap within a file, and
    each reads one token further for its last target, so every token is once an input and once
    a target. A file's tail that fills no window is left out. Documents may span windows.

    Args:
      folder: where the stream is.
      sequence_length: T.

    Raises:
      InputError: an index without the expected fields, files that are missing or truncated,
        or too few tokens for one window.
    """

    def __init__(self, folder: str | os.PathLike, sequence_length: int):
        self.folder = str(folder)
        self.sequence_length = sequence_length
        self.index = read_index(folder)
        try:
            self.eos_id = int(self.index["eos_id"])
            listed = [
                (pathlib.Path(folder) / file["name"], int(file["tokens"]), file.get("offset", 0))
                for file in self.index["files"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{folder}/index.json: not the index of a token stream (field {error}); "
                "make the folder again"
            ) from None
        dtype = self.index.get("dtype", "uint32")
        check_choice(f"{folder}/index.json: dtype", dtype, DTYPES)
        self.files = [_open(path, DTYPES[dtype], *place) for path, *place in listed]
        windows = [max(0, len(file) - 1) // sequence_length for file in self.files]
        self.ends = np.cumsum(windows)
        if not windows or not self.ends[-1]:
            longest = max((len(file) for file in self.files), default=0)
            raise InputError(
                f"{folder}: too short: its longest file has {longest} tokens, and one window of "
                f"sequence_length={sequence_length} needs one more than that"
            )
        self.fingerprint = fingerprint(*(path for path, *_ in listed))
        self.most_targets = sequence_length

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, windows: Int64[np.ndarray, " B"]) -> Batch:
        """The windows as inputs and targets.

        A target is masked where its input is EOS: what begins a document cannot be predicted
        from the one before (as in released RAT+).
        """
        length = self.sequence_length
        tokens = np.empty((len(windows), length + 1), np.int32)
        places = np.searchsorted(self.ends, windows, side="right")
        for row, (window, place) in enumerate(zip(windows, places, strict=True)):
            begin = (window - (self.ends[place - 1] if place else 0)) * length
            tokens[row] = self.files[place][begin : begin + length + 1]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        ends_document = inputs == self.eos_id
        starts = np.ones(inputs.shape, bool)
        starts[:, 1:] = ends_document[:, :-1]
        return Batch(
            np.ascontiguousarray(inputs), np.ascontiguousarray(targets), ~ends_document, starts
        )


def _open(path: pathlib.Path, dtype: np.dtype, tokens: int, offset: int) -> np.ndarray:
    if not path.is_file():
        raise MissingDataError(f"{path}: missing; make the folder again")
    size = path.stat().st_size
    if size != offset + tokens * dtype.itemsize:
        raise InputError(
            f"{path}: has {size} bytes, its index says {tokens} tokens of {dtype.itemsize} bytes; "
            "it was truncated or changed; make the folder again"
        )
    if not tokens:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset, (tokens,)).view(np.ndarray)
