"""The whole of it: which shards are missing, making them, and the index at the end.

The output is a function of the inputs and the recipe: neither the number of processes nor a kill
in between changes a byte. A folder that is not finished holds

    job.json              what it is made from, so that nothing else is mixed into it
    shards/00000.json     what a finished shard holds
    00000.bin, held_out/00000.bin

and an `index.json`, in `held_out` too, once it is.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ratjax.data.corpus import pool, shard
from ratjax.data.corpus.documents import check_readers
from ratjax.data.corpus.files import Part
from ratjax.data.corpus.progress import Progress
from ratjax.data.corpus.shard import HELD_OUT, SHARDS, Counts, Recipe
from ratjax.data.encoding import TOKEN, cached_tokenizer, digest
from ratjax.data.folder import INDEX
from ratjax.data.stream import write_index
from ratjax.errors import InputError
from ratjax.files import alone_in, check_new_folder, read_json, write_json

JOB = "job.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """A corpus to be tokenized.

    Attributes:
      folder: of the stream; the held-out one goes into `held_out` in it.
      shards: from `plan_shards`.
      tokenizer: a `tokenizer.json`.
      recipe: what is made of each document.
      max_tokens: the stream ends with the document that reaches so many (held-out documents
        not counted). None: with the last document there is.

    Raises:
      InputError: `max_tokens` that is not above 0, a missing library or an unusable tokenizer.
    """

    folder: pathlib.Path
    shards: list[tuple[Part, ...]]
    tokenizer: pathlib.Path
    recipe: Recipe
    max_tokens: int | None = None

    def __post_init__(self):
        if self.max_tokens is not None and self.max_tokens <= 0:
            raise InputError(f"max_tokens={self.max_tokens}: must be above 0")
        check_readers([part.file for parts in self.shards for part in parts])
        tokenizer = cached_tokenizer(self.tokenizer)
        if not 0 <= self.recipe.eos_id < tokenizer.get_vocab_size():
            raise InputError(
                f"eos_id={self.recipe.eos_id}: the tokenizer has {tokenizer.get_vocab_size()}"
            )

    def description(self) -> dict[str, Any]:
        """What `job.json` holds."""
        return {
            "tokenizer_sha256": digest(cached_tokenizer(self.tokenizer)),
            **dataclasses.asdict(self.recipe),
            "max_tokens": self.max_tokens,
            "shards": [
                [[p.file.name, p.file.size, p.file.identity, p.number, p.parts] for p in parts]
                for parts in self.shards
            ],
        }

    def state(self) -> dict[int, Counts]:
        """The shards that are finished, after a check that the folder is this job's.

        Raises:
          InputError: the folder holds something else, or what another job made.
        """
        if not (self.folder / JOB).exists():
            check_new_folder(self.folder)
            return {}
        _compare(self.folder, read_json(self.folder / JOB), self.description())
        counts = {n: shard.finished(self.folder, n) for n in range(len(self.shards))}
        return {number: count for number, count in counts.items() if count}

    def complete(self) -> bool:
        """Whether there is nothing left to do in a folder that `state` accepts."""
        return (self.folder / JOB).exists() and (self.folder / INDEX).exists()


def run(job: Job, workers: int, progress: Progress) -> Counts:
    """Makes what is missing of a job's output.

    Args:
      job: what to make.
      workers: processes that tokenize. 0: this one does.
      progress: is told of it.

    Returns:
      What the streams hold.

    Raises:
      InputError: as `Job.state`; a damaged input; no text; another process at work here.
    """
    job.state()  # before anything is written
    if job.complete():
        return _written(job.folder)
    for place in (job.folder, job.folder / SHARDS, job.folder / HELD_OUT):
        place.mkdir(parents=True, exist_ok=True)
    with alone_in(job.folder):
        shard.remove_unfinished(job.folder)
        if not (job.folder / JOB).exists():
            write_json(job.folder / JOB, job.description())
        done = job.state()
        try:
            _make_missing(job, done, workers, progress)
        finally:
            shard.remove_unfinished(job.folder)  # of processes that were ended
        return _conclude(job, done)


def _make_missing(job: Job, done: dict[int, Counts], workers: int, progress: Progress) -> None:
    """Adds to `done` until it has all shards, or the first ones with enough tokens."""

    def missing() -> Iterator[tuple[int, tuple]]:
        for number, parts in enumerate(job.shards):
            if _needed(job, done) is not None:
                return
            if number not in done:
                yield number, (job.folder, number, parts, job.recipe, job.tokenizer)

    def size(number: int) -> int:
        return sum(part.size for part in job.shards[number])

    progress.begin(sum(map(size, range(len(job.shards)))), sum(map(size, done)))
    made = pool.work(shard.make_shard, missing(), workers, progress.tokens)
    with contextlib.closing(made):
        for number, counts in made:
            done[number] = counts
            progress.shard(size(number))
            if _needed(job, done) is not None:
                return


def _needed(job: Job, done: dict[int, Counts]) -> int | None:
    """How many shards, from the first on, make up the output; None where that is not known yet."""
    tokens = 0
    for number in range(len(job.shards)):
        if number not in done:
            return None
        tokens += done[number].tokens
        if job.max_tokens is not None and tokens >= job.max_tokens:
            return number + 1
    return len(job.shards)


def _conclude(job: Job, done: dict[int, Counts]) -> Counts:
    """Removes what is too much, and writes both indexes; the stream's is the last thing written."""
    needed = _needed(job, done)
    for number in shard.shards_there(job.folder):
        if number >= needed:
            shard.remove_shard(job.folder, number)
    counts = [done[number] for number in range(needed)]
    surplus = sum(c.tokens for c in counts) - (job.max_tokens or float("inf"))
    if surplus > 0:
        counts[-1] = _cut(job, needed - 1, counts[-1], int(surplus))
    whole = Counts(*(sum(column) for column in zip(*map(dataclasses.astuple, counts), strict=True)))
    if not whole.tokens:
        raise InputError(f"{job.folder}: its sources hold no text (that is not held out)")
    facts = {
        "vocab_size": cached_tokenizer(job.tokenizer).get_vocab_size(),
        "tokenizer_sha256": digest(cached_tokenizer(job.tokenizer)),
    }
    files = {shard.file_name(n): count for n, count in enumerate(counts)}
    if whole.held_out_tokens:
        write_index(
            job.folder / HELD_OUT,
            {name: count.held_out_tokens for name, count in files.items() if count.held_out_tokens},
            job.recipe.eos_id,
            documents=whole.held_out_documents,
            **facts,
        )
    else:
        (job.folder / HELD_OUT).rmdir()
    write_index(
        job.folder,
        {name: count.tokens for name, count in files.items() if count.tokens},
        job.recipe.eos_id,
        documents=whole.documents,
        **facts,
        held_out=job.recipe.held_out,
    )
    return whole


def _written(folder: pathlib.Path) -> Counts:
    """What the indexes of a finished folder say."""
    found = []
    for place in (folder, folder / HELD_OUT):
        index = read_json(place / INDEX) if place.is_dir() else {"files": [], "documents": 0}
        found += [sum(file["tokens"] for file in index["files"]), index["documents"]]
    return Counts(*found)


def _cut(job: Job, number: int, counts: Counts, surplus: int) -> Counts:
    """Ends the last shard with the document that reaches `max_tokens`.

    Should this process be killed before the index is written, the shard has another size than it
    claims, and is made anew.
    """
    path = job.folder / shard.file_name(number)
    ends = np.flatnonzero(np.memmap(path, TOKEN, "r") == job.recipe.eos_id) + 1
    kept = int(np.searchsorted(ends, counts.tokens - surplus)) + 1
    tokens = int(ends[kept - 1])
    os.truncate(path, tokens * TOKEN.itemsize)
    return dataclasses.replace(counts, tokens=tokens, documents=kept)


def _compare(folder: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    remedy = "choose another folder, or remove this one"
    if before.get("tokenizer_sha256") != now["tokenizer_sha256"]:
        raise InputError(f"{folder}: was begun with another tokenizer; {remedy}")
    # A file may have moved: what counts is its content.
    contents = [
        [[part[1:] for part in parts] for parts in job.get("shards", [])] for job in (before, now)
    ]
    if contents[0] != contents[1]:
        names = [{p[0] for parts in job.get("shards", []) for p in parts} for job in (before, now)]
        other = sorted(names[0] ^ names[1])
        what = f", such as {other[0]}" if other else " (a file changed, or shard_bytes did)"
        raise InputError(f"{folder}: was begun from other inputs{what}; {remedy}")
    for name, value in now.items():
        if name != "shards" and before.get(name) != value:
            raise InputError(
                f"{folder}: was begun with {name}={before.get(name)!r}, not {value!r}; {remedy}"
            )
