"""Random keys and values: numbers, words, UUIDs."""

import functools
import random
import uuid
from importlib import resources


@functools.cache
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The distinct adjectives and nouns of the `wonderwords` package, sorted.

    RULER sorts the distinct strings `adjective-noun` and draws from them. No two pairs give the
    same string, so drawing an adjective and a noun is the same draw without 6,171,620 strings.
    """
    assets = resources.files("wonderwords").joinpath("assets")
    texts = [
        assets.joinpath(name).read_text("utf-8") for name in ("adjectivelist.txt", "nounlist.txt")
    ]
    adjectives, nouns = (
        tuple(sorted({line.strip() for line in text.splitlines()} - {""})) for text in texts
    )
    return adjectives, nouns


def draw(kind: str, rng: random.Random) -> str:
    """One random key or value.

    Args:
      kind: `numbers`: 7 digits, the first not 0. `words`: adjective-noun. `uuids`: version 4.
      rng: where the randomness comes from.
    """
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    adjectives, nouns = word_lists()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def draw_new(kind: str, rng: random.Random, used: set[str]) -> str:
    """One random key or value that is not in `used`, which it then joins.

    RULER draws with replacement: at 4096 tokens about one MK-2 prompt in 50,000 has two needles
    for its key. Distinct draws leave no prompt with a wrong answer sheet.
    """
    while (drawn := draw(kind, rng)) in used:
        pass
    used.add(drawn)
    return drawn
