"""Training rows of random sequences that are repeated: practice in looking back.

Nothing in these rows can be known from anything but the earlier occurrence, so a small model
learns from them to find and copy, which is what a needle asks of it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer

from ratjax.errors import ConfigError, check_choice, check_positive
from ratjax.needle.encoding import encode
from ratjax.needle.words import word_lists

_Stream = Callable[[int], np.ndarray]  # gives that many random tokens


@dataclasses.dataclass(frozen=True)
class CopyRows:
    """Rows of random sequences, each followed by itself.

    Attributes:
      rows: how many.
      period: shortest and longest sequence, in tokens; log-uniform between them.
      repeat: `twice`: a sequence, itself again, then the next sequence, until the row is full.
        `fill`: one sequence again and again: most of the row is then a target.
      unit: `token`: tokens drawn from the whole vocabulary, special ones left out. `word`: tokens
        of random adjectives and nouns, one after the other.
    """

    rows: int
    period: tuple[int, int] = (8, 64)
    repeat: str = "twice"
    unit: str = "token"

    def __post_init__(self):
        check_positive("copy.rows", self.rows)
        check_choice("copy.repeat", self.repeat, ("twice", "fill"))
        check_choice("copy.unit", self.unit, ("token", "word"))
        shortest, longest = self.period
        if not 2 <= shortest <= longest:
            raise ConfigError(
                "copy.period", self.period, "must be (shortest, longest) with 2 <= shortest"
            )


def copy_rows(
    part: CopyRows, tokenizer: Tokenizer, length: int, rng: np.random.Generator
) -> tuple[Int32[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """Tokens and loss mask of `part.rows` rows.

    The loss is on a sequence's later occurrences without the first token of the second: that
    it starts there is nothing the row tells.

    Args:
      part: what to draw.
      tokenizer: whose tokens they are.
      length: tokens a row.
      rng: where the randomness comes from.
    """
    stream = _token_stream(tokenizer, rng) if part.unit == "token" else _word_stream(tokenizer, rng)
    tokens = np.zeros((part.rows, length), np.int32)
    mask = np.zeros((part.rows, length), bool)
    for row in range(part.rows):
        at = 0
        while at < length:
            low, high = part.period
            period = int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
            times = 2 if part.repeat == "twice" else -(-length // period)
            stop = min(at + times * period, length)
            tokens[row, at:stop] = np.tile(stream(period), times)[: stop - at]
            mask[row, at + period + 1 : stop] = True
            at = stop
    return tokens, mask


def _token_stream(tokenizer: Tokenizer, rng: np.random.Generator) -> _Stream:
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    usual = np.array(sorted(set(tokenizer.get_vocab().values()) - special), np.int32)
    return lambda n: rng.choice(usual, n)


def _word_stream(tokenizer: Tokenizer, rng: np.random.Generator) -> _Stream:
    # n words have at least n tokens, so cutting after n tokens never leaves too few.
    words = [word for words in word_lists() for word in words]
    ids = [np.array(found.ids, np.int32) for found in encode(tokenizer, [f" {w}" for w in words])]
    ids = [found for found in ids if len(found)]
    return lambda n: np.concatenate([ids[i] for i in rng.integers(len(ids), size=n)])[:n]
