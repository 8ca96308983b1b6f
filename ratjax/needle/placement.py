"""Puts needles into a haystack.

A haystack grows by units: words of an essay, lines of noise, lines of needles. Nothing but the
number of units changes while a prompt is fitted to its length: depths are drawn once, and lines
once for each number of lines.
"""

import itertools
from collections.abc import Sequence

from ratjax.needle.essays import Essays


def into_essay(essays: Essays, n_words: int, needles: Sequence[str], depths: Sequence[int]) -> str:
    """The first `n_words` words with each needle between two sentences.

    Args:
      essays: the text.
      n_words: words of it; 0 leaves the needles alone.
      needles: one after the other, in the order in which they shall stand.
      depths: ascending, in percent of the text's sentences: a needle at depth d follows
        sentence number floor(sentences * d / 100).

    Everything is joined by single spaces; RULER leaves two where needles meet or stand at an end.
    """
    sentences = essays.sentences(n_words)
    # A cut-off last sentence ends where the text does.
    stops = [
        min(essays.sentence_end(after), n_words) if (after := sentences * depth // 100) else 0
        for depth in depths
    ]
    text = essays.head(n_words)
    pieces = []
    for needle, (start, stop) in itertools.zip_longest(
        needles, itertools.pairwise([0, *stops, n_words])
    ):
        if stop > start:
            begin = essays.word_end(start) + 1 if start else 0
            pieces.append(text[begin : essays.word_end(stop)])
        if needle is not None:
            pieces.append(needle)
    return " ".join(pieces)


def into_lines(lines: Sequence[str], needles: Sequence[str], indices: Sequence[int]) -> str:
    """The lines with each needle as one more line.

    Args:
      lines: the haystack.
      needles: the first one takes the largest index, and so on downwards, as in RULER.
      indices: distinct; a needle stands before the line that has this index in `lines`, or last.
    """
    placed = list(lines)
    for index, needle in zip(sorted(indices, reverse=True), needles, strict=True):
        placed.insert(index, needle)
    return "\n".join(placed)
