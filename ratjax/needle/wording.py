"""Every sentence of a prompt.

RULER writes the plural and derives the singular by replacing words; both are spelled out here.
Inside a needle the type of value stays plural, in the singular too.
"""

from collections.abc import Sequence

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def needle(value_type: str, key: str, value: str) -> str:
    """One needle: a key and its value."""
    return f"One of the special magic {value_type} for {key} is: {value}."


def opening(value_type: str, singular: bool) -> str:
    """What stands before the haystack, up to and with the line break."""
    if singular:
        noun = value_type.removesuffix("s")
        hidden = f"A special magic {noun} is hidden within the following text."
    else:
        noun = value_type
        hidden = f"Some special magic {noun} are hidden within the following text."
    return f"{hidden} Make sure to memorize it. I will quiz you about the {noun} afterwards.\n"


def question(value_type: str, keys: Sequence[str], singular: bool) -> str:
    """What stands after the haystack, from the line break on."""
    asked = f"for {listing(keys)} mentioned in the provided text?"
    if singular:
        return f"\nWhat is the special magic {value_type.removesuffix('s')} {asked}"
    return f"\nWhat are all the special magic {value_type} {asked}"


def listing(keys: Sequence[str]) -> str:
    """`a`, or `a, b, and c` (with the comma before `and` for two keys as well, as in RULER)."""
    if len(keys) == 1:
        return keys[0]
    return ", ".join(keys[:-1]) + ", and " + keys[-1]
