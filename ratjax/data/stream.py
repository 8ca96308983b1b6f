"""Token streams: documents end to end, each followed by EOS, cut into windows when read.

A folder of headerless little-endian uint32 files and an `index.json` that names them:
`{"format": 1, "eos_id":, "vocab_size":, "documents":, "files": [{"name":, "tokens":}]}`.
"""

import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from jaxtyping import Int64

from ratjax.data.batch import Batch
from ratjax.data.folder import INDEX, MissingDataError, fingerprint, read_index
from ratjax.errors import InputError
from ratjax.files import new_folder, write_json

FORMAT = 1
TOKEN = np.dtype("<u4")
DOCUMENTS_AT_ONCE = 1024


def write_stream(
    folder: str | os.PathLike,
    texts: Iterable[str],
    tokenizer: tokenizers.Tokenizer,
    eos_id: int,
    file_tokens: int = 1 << 28,
) -> int:
    """Tokenizes documents into a stream, all or nothing.

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
    files, total, documents = [], 0, 0
    with new_folder(folder) as part:
        encoded = _encode(texts, tokenizer)
        while (first := next(encoded, None)) is not None:
            name, size = f"{len(files):05d}.bin", 0
            with (part / name).open("wb") as file:
                for ids in itertools.chain([first], encoded):
                    np.asarray([*ids, eos_id], TOKEN).tofile(file)
                    size += len(ids) + 1
                    documents += 1
                    if size >= file_tokens:
                        break
            files.append({"name": name, "tokens": size})
            total += size
        if not files:
            raise InputError(f"{folder}: there is no text to write into it")
        write_json(
            part / INDEX,
            {
                "format": FORMAT,
                "eos_id": eos_id,
                "vocab_size": tokenizer.get_vocab_size(),
                "documents": documents,
                "files": files,
            },
        )
    return total


def _encode(texts: Iterable[str], tokenizer: tokenizers.Tokenizer) -> Iterator[list[int]]:
    texts = (text for text in texts if text)
    while some := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
        for encoding in tokenizer.encode_batch(some, add_special_tokens=False):
            yield encoding.ids


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
            sizes = {str(file["name"]): int(file["tokens"]) for file in self.index["files"]}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder}/index.json: not the index of a token stream (field {error}); "
                "make the folder again"
            ) from None
        paths = [pathlib.Path(folder) / name for name in sizes]
        self.files = [_open(path, sizes[path.name]) for path in paths]
        windows = [max(0, len(file) - 1) // sequence_length for file in self.files]
        self.ends = np.cumsum(windows)
        if not windows or not self.ends[-1]:
            raise InputError(
                f"{folder}: too short: its longest file has {max(sizes.values(), default=0)} "
                f"tokens, and one window of sequence_length={sequence_length} needs one more "
                "than that"
            )
        self.fingerprint = fingerprint(*paths)
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


def _open(path: pathlib.Path, tokens: int) -> np.ndarray:
    if not path.is_file():
        raise MissingDataError(f"{path}: missing; make the folder again")
    size = path.stat().st_size
    if size != tokens * TOKEN.itemsize:
        raise InputError(
            f"{path}: has {size} bytes, its index says {tokens} tokens of {TOKEN.itemsize} bytes; "
            "it was truncated or changed; make the folder again"
        )
    return np.memmap(path, TOKEN, "r").view(np.ndarray) if size else np.empty(0, TOKEN)
