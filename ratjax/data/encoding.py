"""From text to tokens: how every folder of tokens is encoded and written."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers

from ratjax.errors import InputError, nearest

TOKEN = np.dtype("<u4")
# The library keeps several times this many bytes while it encodes one lot.
LOT_DOCUMENTS, LOT_CHARACTERS = 1024, 1 << 20
# What published tokenizers call the token after a document.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>")


def load_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """A tokenizer for whole documents, whatever its file says of truncation and padding.

    Raises:
      InputError: no such file, or not one of the `tokenizers` library.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"tokenizer={str(path)!r}: no such file; name a tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: not a tokenizer.json ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# For workers, which are given a path with each shard.
cached_tokenizer = functools.lru_cache(1)(load_tokenizer)


def digest(tokenizer: tokenizers.Tokenizer) -> str:
    """Names a tokenizer by its content: the SHA-256 of its JSON, which stored rows keep too."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def find_eos(
    tokenizer: tokenizers.Tokenizer, token: str | None = None, number: int | None = None
) -> int:
    """The id of the token that follows each document.

    Args:
      tokenizer: which has to know it.
      token: the token as text; None looks for the names in `ENDS`.
      number: its id, in place of `token`.

    Raises:
      InputError: the tokenizer has no such token, or several of the usual names.
    """
    size = tokenizer.get_vocab_size()
    if number is not None:
        if token is not None:
            raise InputError(f"eos={token!r}, eos_id={number}: give one of them")
        if tokenizer.id_to_token(number) is None:
            raise InputError(f"eos_id={number}: the tokenizer has no such token (it has {size})")
        return number
    if token is not None:
        found = tokenizer.token_to_id(token)
        if found is None:
            special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
            raise InputError(f"eos={token!r}: not in the tokenizer; {nearest(token, special)}")
        return found
    known = [name for name in ENDS if tokenizer.token_to_id(name) is not None]
    if len(known) == 1:
        return tokenizer.token_to_id(known[0])
    if known:
        raise InputError(f"eos=None: the tokenizer has {', '.join(known)}; say which one with eos")
    raise InputError(
        f"eos=None: the tokenizer has no EOS of a usual name ({', '.join(ENDS)}); name the token "
        "that is to follow each document"
    )


def encode(
    texts: Iterable[str], tokenizer: tokenizers.Tokenizer
) -> Iterator[tuple[str, list[int]]]:
    """Each document with its tokens, many documents encoded at a time.

    No special token is added, and none is read out of a text: a document that mentions
    `<|endoftext|>` holds that as ordinary text, so that EOS is found between documents only.
    Empty documents are left out.
    """
    before = tokenizer.encode_special_tokens
    try:
        tokenizer.encode_special_tokens = True
        for lot in _lots(texts):
            encodings = tokenizer.encode_batch_fast(lot, add_special_tokens=False)
            yield from ((text, encoding.ids) for text, encoding in zip(lot, encodings, strict=True))
    finally:
        tokenizer.encode_special_tokens = before


def _lots(texts: Iterable[str]) -> Iterator[list[str]]:
    lot, characters = [], 0
    for text in texts:
        if not text:
            continue
        lot.append(_valid(text))
        characters += len(text)
        if len(lot) == LOT_DOCUMENTS or characters >= LOT_CHARACTERS:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot


def _valid(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class TokenWriter:
    """Writes documents end to end into a file, each followed by EOS.

    Attributes:
      tokens: written so far, EOS included.
      documents: written so far.
    """

    def __init__(self, path: pathlib.Path, eos_id: int):
        self._file, self._eos = path.open("wb"), [eos_id]
        self.tokens = self.documents = 0

    def add(self, ids: Sequence[int]) -> None:
        self._file.write(np.asarray([*ids, *self._eos], TOKEN).tobytes())
        self.tokens += len(ids) + 1
        self.documents += 1

    def close(self) -> None:
        """Ends the file, and waits until it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_) -> None:
        if not self._file.closed:
            self.close()
