"""As much haystack as fits into a number of tokens, for many prompts at once.

RULER searches one amount of haystack on one prompt and takes 500 words or 25 lines off a prompt
that comes out too long. Here every prompt gets the most that fits, so that all of them are within
one unit of the wanted length. Encoding is nearly all of the work, so the haystack's tokens per
unit are counted once, and a prompt is encoded again only where that count leaves a doubt.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from tokenizers import Encoding, Tokenizer

from ratjax.errors import InputError
from ratjax.needle.encoding import count, encode
from ratjax.needle.essays import Essays
from ratjax.needle.prompts import Draft

# After this many guesses the search halves what is left, and so ends for any tokenizer.
_GUESSES = 6
# Tokens by which a unit between other text may differ from its own count: a needle may move by a
# sentence and meet other neighbours.
_MARGIN = 2


class Growth:
    """How many tokens the first n units of a haystack add to a prompt, nearly.

    Attributes:
      doubt: tokens by which one unit more may differ from what `tokens` says.
    """

    def __init__(self, table: Float64[np.ndarray, " units"], slope: float, doubt: int):
        if slope <= 0:
            raise InputError(
                "tokenizer: encodes the haystack as no tokens; use one trained on English text"
            )
        self._table = table  # table[n]: tokens of n units, not decreasing, table[0] = 0
        self._slope = slope  # tokens per unit beyond the table
        self.doubt = doubt

    def tokens(self, units: int) -> float:
        """Tokens of the first `units` units."""
        beyond = max(0, units - len(self._table) + 1)
        return float(self._table[units - beyond]) + beyond * self._slope

    def units(self, tokens: float) -> int:
        """The most units that have at most this many tokens, at least 0."""
        last = float(self._table[-1])
        if tokens > last:
            return len(self._table) - 1 + int((tokens - last) / self._slope)
        return max(0, int(np.searchsorted(self._table, tokens, side="right")) - 1)


def essay_growth(essays: Essays, tokenizer: Tokenizer, budget: int) -> Growth:
    """Growth by words, counted on the essays themselves.

    Args:
      essays: the haystack.
      tokenizer: encodes it.
      budget: tokens of interest: few words have less than one.
    """
    words = min(budget, essays.n_words)
    starts = np.array([start for start, _ in encode(tokenizer, [essays.head(words)])[0].offsets])
    ends = np.array([essays.word_end(n) for n in range(words + 1)])
    table = np.searchsorted(starts, ends).astype(np.float64)
    return Growth(table, float(table[-1]) / words, _MARGIN)


def line_growth(draft: Draft, tokenizer: Tokenizer) -> Growth:
    """Growth by lines, counted between the first 8 and the first 40 lines of one draft."""
    few, many = count(tokenizer, [draft.text(8), draft.text(40)])
    lines = count(tokenizer, draft.lines(40))
    return Growth(np.zeros(1), (many - few) / 32, max(lines) - min(lines) + _MARGIN)


class _Search:
    """One draft's state: `fits` units do, `too_many` do not (None: not yet known)."""

    def __init__(self, draft: Draft, tokens: int):
        self.draft = draft
        self.fits, self.too_many = 0, None
        self.encoding: Encoding | None = None
        self._tokens = tokens  # of `fits`
        self._nearest = (0, tokens)  # what was seen nearest to the budget

    def candidate(self, growth: Growth, budget: int, turn: int) -> int | None:
        """An amount between `fits` and `too_many` to try next, or None: `fits` is the answer."""
        if self.too_many is not None and self.too_many - self.fits == 1:
            return None
        if turn >= _GUESSES:
            return (self.fits + (self.too_many or 3 * self.fits + 2)) // 2
        units, tokens = self._nearest
        guess = growth.units(budget - tokens + growth.tokens(units))
        if self.too_many is not None:
            guess = min(guess, self.too_many - 1)
        if guess > self.fits:
            return guess
        next_unit = growth.tokens(self.fits + 1) - growth.tokens(self.fits)
        room = budget - self._tokens
        return None if room == 0 or next_unit > room + growth.doubt else self.fits + 1

    def see(self, units: int, encoding: Encoding, budget: int) -> None:
        """Takes in that the candidate `units` gave this encoding."""
        tokens = len(encoding.ids)
        if tokens > budget:
            self.too_many = units
        else:
            self.fits, self._tokens, self.encoding = units, tokens, encoding
        if abs(budget - tokens) < abs(budget - self._nearest[1]):
            self._nearest = (units, tokens)


def fit(
    drafts: Sequence[Draft],
    bare: Sequence[int],
    tokenizer: Tokenizer,
    budget: int,
    growth: Growth,
) -> list[tuple[int, Encoding]]:
    """For each draft the units of haystack that fit where one more would not, and the prompt.

    Args:
      drafts: the prompts.
      bare: their tokens without haystack, each at most `budget`.
      tokenizer: without padding or truncation.
      budget: tokens a prompt may have.
      growth: of these drafts' haystack.
    """
    searches = [_Search(draft, tokens) for draft, tokens in zip(drafts, bare, strict=True)]
    unfinished, turn = searches, 0
    while unfinished:
        tries = [(search, search.candidate(growth, budget, turn)) for search in unfinished]
        tries = [(search, units) for search, units in tries if units is not None]
        found = encode(tokenizer, [search.draft.text(units) for search, units in tries])
        for (search, units), encoding in zip(tries, found, strict=True):
            search.see(units, encoding, budget)
        unfinished = [search for search, _ in tries]
        turn += 1
    without = [search for search in searches if search.encoding is None]
    found = encode(tokenizer, [search.draft.text(0) for search in without])
    for search, encoding in zip(without, found, strict=True):
        search.encoding = encoding
    return [(search.fits, search.encoding) for search in searches]
