"""One shard of a corpus: the tokens of some parts of its files, made whole or not at all."""

import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from ratjax.data.corpus.documents import RemoteError, documents
from ratjax.data.corpus.files import Part
from ratjax.data.encoding import TOKEN, TokenWriter, cached_tokenizer, encode
from ratjax.errors import InputError
from ratjax.files import read_json, write_json

SHARDS, HELD_OUT = "shards", "held_out"
TELL_EVERY = 1 << 16  # tokens
WAITS = (10, 60, 300)  # seconds before a remote file is tried again


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is made of a document.

    Attributes:
      eos_id: token put after it.
      field: of a record, which holds its text.
      separator: what parts the documents of a text file. None: a file is one document.
      held_out: share of the documents that go into the held-out stream.
    """

    eos_id: int
    field: str = "text"
    separator: str | None = None
    held_out: float = 0.001

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out={self.held_out}: must be at least 0 and below 1")
        if self.separator == "":
            raise InputError("separator='': must not be empty; leave it out")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one shard holds: of the documents that are kept, and of those held out."""

    tokens: int = 0
    documents: int = 0
    held_out_tokens: int = 0
    held_out_documents: int = 0


def file_name(number: int) -> str:
    return f"{number:05d}.bin"


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is held out: a function of its text alone.

    So equal documents are together on one side, whichever files they come from.
    """
    word = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(word, "little") < share * 2.0**64


def make_shard(
    folder: pathlib.Path,
    number: int,
    parts: tuple[Part, ...],
    recipe: Recipe,
    tokenizer: pathlib.Path,
    tell: Callable[[int], None] = lambda tokens: None,
) -> Counts:
    """Writes `<number>.bin`, that of the held-out documents, and last `shards/<number>.json`.

    A remote file that cannot be read is tried again, after a while and from the shard's start.

    Args:
      folder: of the stream; with the folders `shards` and `held_out` in it.
      number: of the shard.
      parts: what it is made of.
      recipe: how.
      tokenizer: its file.
      tell: is told of the tokens made, now and then.

    Raises:
      InputError: a part that cannot be read.
    """
    for wait in (*WAITS, None):
        told = 0

        def relay(tokens: int) -> None:
            nonlocal told
            told += tokens
            tell(tokens)

        try:
            counts = _write(folder, number, parts, recipe, tokenizer, relay)
            break
        except RemoteError:
            if wait is None:
                raise
            tell(-told)
            time.sleep(wait)
    write_json(folder / SHARDS / f"{number:05d}.json", dataclasses.asdict(counts))
    return counts


def _write(
    folder: pathlib.Path,
    number: int,
    parts: tuple[Part, ...],
    recipe: Recipe,
    tokenizer: pathlib.Path,
    tell: Callable[[int], None],
) -> Counts:
    places = [folder / file_name(number), folder / HELD_OUT / file_name(number)]
    unfinished = [place.with_name(f".{place.name}.{os.getpid()}.part") for place in places]
    texts = (t for part in parts for t in documents(part, recipe.field, recipe.separator))
    told = 0
    try:
        with (
            TokenWriter(unfinished[0], recipe.eos_id) as kept,
            TokenWriter(unfinished[1], recipe.eos_id) as held_out,
        ):
            for text, ids in encode(texts, cached_tokenizer(tokenizer)):
                (held_out if is_held_out(text, recipe.held_out) else kept).add(ids)
                made = kept.tokens + held_out.tokens
                if made - told >= TELL_EVERY:
                    tell(made - told)
                    told = made
        for place, part, file in zip(places, unfinished, (kept, held_out), strict=True):
            if file.tokens:
                os.replace(part, place)
    finally:
        for part in unfinished:
            part.unlink(missing_ok=True)
    tell(kept.tokens + held_out.tokens - told)
    return Counts(kept.tokens, kept.documents, held_out.tokens, held_out.documents)


def finished(folder: pathlib.Path, number: int) -> Counts | None:
    """What a shard that is there holds; None where it is not, or is not whole."""
    try:
        counts = Counts(**read_json(folder / SHARDS / f"{number:05d}.json"))
    except (FileNotFoundError, InputError, TypeError):
        return None
    for place, tokens in (
        (folder / file_name(number), counts.tokens),
        (folder / HELD_OUT / file_name(number), counts.held_out_tokens),
    ):
        size = place.stat().st_size if place.exists() else 0
        if size != tokens * TOKEN.itemsize:
            return None
    return counts


def remove_shard(folder: pathlib.Path, number: int) -> None:
    """Removes what there is of a shard, its claim to be finished first."""
    (folder / SHARDS / f"{number:05d}.json").unlink(missing_ok=True)
    for place in (folder, folder / HELD_OUT):
        (place / file_name(number)).unlink(missing_ok=True)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what killed processes left."""
    for place in (folder, folder / HELD_OUT, folder / SHARDS):
        for path in place.glob(".*.part"):
            path.unlink(missing_ok=True)


def shards_there(folder: pathlib.Path) -> Iterator[int]:
    """The numbers of the shards that something is left of."""
    names = {path.stem for path in (folder / SHARDS).glob("*.json")}
    for place in (folder, folder / HELD_OUT):
        names |= {path.stem for path in place.glob("*.bin")}
    return (int(name) for name in sorted(names) if name.isdecimal())
