"""A run's batches: element n of one Grain dataset is the batch of step n, whatever the stage."""

import os
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int64

from ratjax.config.data import Span
from ratjax.data.batch import Batch
from ratjax.data.folder import read_index
from ratjax.data.order import Mixture, shuffle_key, shuffled
from ratjax.data.rows import Rows
from ratjax.data.stream import Stream
from ratjax.errors import InputError


@runtime_checkable
class Source(Protocol):
    """A data folder opened for one sequence length."""

    folder: str
    index: dict
    fingerprint: str
    most_targets: int  # of any of its records

    def __len__(self) -> int: ...

    def read(self, records: Int64[np.ndarray, " B"]) -> Batch: ...


def open_source(folder: str | os.PathLike, sequence_length: int) -> Source:
    """Opens a data folder of either kind; its index tells which.

    Raises:
      MissingDataError: it does not exist.
      InputError: it is no data folder, is damaged, or does not fit `sequence_length`.
    """
    index = read_index(folder)
    if "files" in index:
        return Stream(folder, sequence_length)
    if "rows" in index:
        return Rows(folder, sequence_length)
    raise InputError(
        f"{folder}/index.json: names neither the rows of a folder of rows nor the files of a "
        "token stream; make the folder again"
    )


class Batches:
    """The batch of every step of a run, as a random-access data source for Grain.

    A batch depends on the seed, the data configuration and the step, and on nothing else: not
    on the model, nor on what was read before.

    Args:
      spans: what `ratjax.config.data.schedule` gives.
      seed: of the order.
      vocab_size: of the model.

    Raises:
      InputError: a source that cannot be used, or whose vocabulary exceeds the model's.
    """

    def __init__(self, spans: tuple[Span, ...], seed: int, vocab_size: int):
        self.spans, self.seed, self.vocab_size = spans, seed, vocab_size
        self.sources = [_open_stage(span, vocab_size) for span in spans]
        self.mixtures = [Mixture([w for _, w in span.stage.sources]) for span in spans]
        self.starts = [span.start for span in spans]
        self.sizes = [np.asarray([len(source) for source in sources]) for sources in self.sources]
        self.keys = [
            np.asarray([shuffle_key(seed, span.index, n) for n in range(len(sources))], np.uint64)
            for span, sources in zip(spans, self.sources, strict=True)
        ]

    def __len__(self) -> int:
        return self.spans[-1].stop

    def __getitem__(self, step: int) -> Batch:
        place = int(np.searchsorted(self.starts, step, side="right")) - 1
        span, sources = self.spans[place], self.sources[place]
        size = span.stage.batch_size
        records = np.arange(size, dtype=np.int64) + (step - span.start) * size
        owners, positions = self.mixtures[place].deal(records)
        picks = shuffled(positions, self.sizes[place][owners], self.keys[place][owners])
        parts, slots = [], []
        for number in np.unique(owners):
            mine = np.flatnonzero(owners == number)
            part = sources[number].read(picks[mine])
            self._check(part, sources[number])
            parts.append(part)
            slots.append(mine)
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(slots))
        return Batch(*(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True)))

    def most_targets(self, span: Span) -> int:
        """The most targets that a sequence of this stage can have."""
        return max(source.most_targets for source in self.sources[self.spans.index(span)])

    def _check(self, part: Batch, source: Source) -> None:
        # Out of range, an embedding look-up would silently return some other row.
        # Negative numbers are very large ones of a stream's uint32.
        largest = max(part.tokens.view(np.uint32).max(), part.targets.view(np.uint32).max())
        if largest >= self.vocab_size:
            raise InputError(
                f"{source.folder}: holds token {largest}, but the model's vocab_size is "
                f"{self.vocab_size}; it was made with another tokenizer"
            )

    def signature(self) -> list[dict]:
        """What the data is, for comparison on resume: stages, and digests of their sources."""
        return [
            {
                "start": span.start,
                "sequence_length": span.stage.sequence_length,
                "batch_size": span.stage.batch_size,
                "recurrence": span.stage.recurrence,
                "sources": [[source.fingerprint, weight] for source, weight in pairs],
            }
            for span, pairs in zip(self.spans, self._weighted(), strict=True)
        ]

    def _weighted(self) -> list[list[tuple[Source, float]]]:
        return [
            [
                (source, weight)
                for source, (_, weight) in zip(sources, span.stage.sources, strict=True)
            ]
            for span, sources in zip(self.spans, self.sources, strict=True)
        ]


def iterate(
    batches: Batches, position: Mapping[str, int], prefetch: int
) -> grain.DatasetIterator[Batch]:
    """A Grain iterator over the batches from `position` on.

    One thread reads ahead in this process. Workers in processes of their own are slower by far
    (docs/data.md): a batch is a few copies out of memory maps, less than handing it over takes.

    Args:
      batches: the run's.
      position: what the iterator's `get_state` gave; `{"next_index": 0}` at the start.
      prefetch: batches made ahead.
    """
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    iterator.set_state(dict(position))
    return iterator


def _open_stage(span: Span, vocab_size: int) -> list[Source]:
    sources = []
    for folder, _ in span.stage.sources:
        source = open_source(folder, span.stage.sequence_length)
        if source.index.get("vocab_size", 0) > vocab_size:
            raise InputError(
                f"{folder}: was tokenized with a vocabulary of {source.index['vocab_size']}, "
                f"but the model's vocab_size is {vocab_size}"
            )
        sources.append(source)
    return sources
