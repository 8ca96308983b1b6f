"""Which prompts run together: sorted by length, in few widths, in batches of one shape each."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from ratjax.model.generation import bucket

# A prompt may be padded to this many times its length before a narrower width pays: every width
# is a set of programs to compile.
MOST_PADDING = 4 / 3


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, tokenised once and run under every setting.

    Attributes:
      row: what `generate` says of it, and its `number` among all prompts.
      tokens: its token ids.
      answer: the right answer's tokens, where selections are watched or steered.
      needed: the position of the prompt that each of them is copied from, -1 for none.
    """

    row: dict[str, Any]
    tokens: Int32[np.ndarray, " T"]
    answer: tuple[int, ...] = ()
    needed: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """Tells prompts apart to random selectors, the same in every batch and backbone."""
        return self.row["number"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts that are read and answered together.

    Attributes:
      prompts: those that count.
      tokens: theirs, padded on the right; then copies of the first until the batch is full.
      lengths: tokens of each row.
      numbers: the prompts' numbers, row by row.
    """

    prompts: tuple[Prompt, ...]
    tokens: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, " B"]
    numbers: Int32[np.ndarray, " B"]

    def targets(self, steps: int) -> tuple[Int32[np.ndarray, "B N"], Int32[np.ndarray, "B N"]]:
        """Each row's right answer and what it needs, cut or filled up to `steps` tokens."""
        answers = np.zeros((len(self.numbers), steps), np.int32)
        needed = np.full_like(answers, -1)
        for row, prompt in enumerate(self.prompts):
            count = min(steps, len(prompt.answer))
            answers[row, :count] = prompt.answer[:count]
            needed[row, :count] = prompt.needed[:count]
        return answers, needed


def widths(lengths: Sequence[int]) -> list[int]:
    """The padded width of each of `lengths`, which ascend; as few different ones as may be."""
    found: list[int] = []
    width = 0
    for length in reversed(lengths):
        if length * MOST_PADDING <= width or not found:
            width = bucket(length)
        found.append(width)
    return found[::-1]


def batches(prompts: Sequence[Prompt], size: int, rows: int = 1) -> Iterator[Batch]:
    """Batches of at most `size` prompts, short ones first; those of one width have one shape.

    Args:
      prompts: in any order.
      size: the most prompts a batch.
      rows: a batch is a multiple of this.
    """
    ordered = sorted(prompts, key=lambda p: (len(p.tokens), p.number))
    by_width: dict[int, list[Prompt]] = {}
    for prompt, width in zip(ordered, widths([len(p.tokens) for p in ordered]), strict=True):
        by_width.setdefault(width, []).append(prompt)
    for width, alike in by_width.items():
        full = -(-min(size, len(alike)) // rows) * rows
        for start in range(0, len(alike), full):
            yield _batch(alike[start : start + full], width, full)


def _batch(counted: list[Prompt], width: int, size: int) -> Batch:
    filled = counted + counted[:1] * (size - len(counted))
    tokens = np.zeros((size, width), np.int32)
    for row, prompt in zip(tokens, filled, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    lengths = np.array([len(p.tokens) for p in filled], np.int32)
    return Batch(tuple(counted), tokens, lengths, np.array([p.number for p in filled], np.int32))
