"""Training rows of short facts and short questions: practice in matching keys.

A needle task asks three things at once of a small model: to read a long question, to find its
key, and to copy a value of several tokens. These rows ask for the second alone, many times a
row, and so give a small model the signal that one question in a long context drowns.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer

from ratjax.errors import InputError, check_choice, check_positive
from ratjax.needle import wording
from ratjax.needle.encoding import encode
from ratjax.needle.words import word_lists

# Rows whose pieces are tokenised together.
_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class DrillRows:
    """Rows of facts `<key> is: <value>.`, one a line, and questions about some of them.

    Attributes:
      rows: how many.
      keys: `nouns`, or `words` (adjective-noun, as in the needle tasks).
      values: `pairs`: two digits. `numbers`: seven, as in the needle tasks.
      questions: questions a row, each about another fact.
      wording: `short`: a line with the key and a question mark. `template`: the needle tasks'.
    """

    rows: int
    keys: str = "nouns"
    values: str = "pairs"
    questions: int = 8
    wording: str = "short"

    def __post_init__(self):
        check_positive("drill.rows", self.rows)
        check_positive("drill.questions", self.questions)
        check_choice("drill.keys", self.keys, ("nouns", "words"))
        check_choice("drill.values", self.values, ("pairs", "numbers"))
        check_choice("drill.wording", self.wording, ("short", "template"))


def drill_rows(
    part: DrillRows, tokenizer: Tokenizer, length: int, eos_id: int, rng: np.random.Generator
) -> tuple[Int32[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """Tokens and loss mask of `part.rows` rows; the loss is on each answer and its EOS.

    Each row holds as many facts as leave room for its questions. What remains is EOS.

    Args:
      part: what to draw.
      tokenizer: the model's.
      length: tokens a row.
      eos_id: ends an answer.
      rng: where the randomness comes from.
    """
    tokens = np.full((part.rows, length), eos_id, np.int32)
    mask = np.zeros((part.rows, length), bool)
    # A fact and a question about it take at least eight tokens together.
    most = length // 8 + 1
    for row, (facts, asked, answers) in enumerate(_drawn(part, most, tokenizer, rng)):
        turn = np.array([len(q) + len(a) + 1 for q, a in zip(asked, answers, strict=True)])
        ends = np.cumsum([len(fact) for fact in facts])
        held = 1
        if ends[0] + turn[0] > length:
            raise InputError(
                f"length={length}: too short for a drill of one fact and its question, "
                f"{ends[0] + turn[0]} tokens"
            )
        # As many facts as leave room for even the longest questions about them.
        while held < most:
            reserved = np.sort(turn[: held + 1])[-part.questions :].sum()
            if ends[held] + reserved > length:
                break
            held += 1
        at = int(ends[held - 1])
        tokens[row, :at] = np.concatenate(facts[:held])
        for i in rng.permutation(held)[: part.questions]:
            stop = at + turn[i]
            if stop > length:
                break
            tokens[row, at : stop - 1] = asked[i] + answers[i]
            mask[row, at + len(asked[i]) : stop] = True
            at = stop
    return tokens, mask


def _drawn(
    part: DrillRows, most: int, tokenizer: Tokenizer, rng: np.random.Generator
) -> Iterator[tuple[list[list[int]], list[list[int]], list[list[int]]]]:
    """For each row the tokens of `most` facts, of a question about each, and of its answer."""
    for start in range(0, part.rows, _AT_ONCE):
        texts = []
        for _ in range(min(_AT_ONCE, part.rows - start)):
            keys, values = _draw(part, most, rng)
            texts += [f"{key} is: {value}.\n" for key, value in zip(keys, values, strict=True)]
            texts += [_question(part, key) for key in keys]
            texts += values
        pieces = [found.ids for found in encode(tokenizer, texts)]
        for at in range(0, len(pieces), 3 * most):
            facts, asked, answers = (pieces[at + i * most : at + (i + 1) * most] for i in range(3))
            yield facts, asked, answers


def _draw(part: DrillRows, n: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    adjectives, nouns = word_lists()
    keys = [nouns[i] for i in rng.choice(len(nouns), n, replace=False)]
    if part.keys == "words":
        keys = [f"{adjectives[rng.integers(len(adjectives))]}-{noun}" for noun in keys]
    low, high = (10, 99) if part.values == "pairs" else (10**6, 10**7 - 1)
    return keys, [str(value) for value in rng.integers(low, high + 1, n)]


def _question(part: DrillRows, key: str) -> str:
    if part.wording == "short":
        return f"{key}?"
    return wording.question("numbers", [key], True)
