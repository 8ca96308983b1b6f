"""Markup without a template engine: elements as strings, everything else escaped."""

import html
from collections.abc import Iterable

_VOID = frozenset({"input", "br", "hr"})


class Markup(str):
    """Text that is markup already, and must not be escaped again."""

    __slots__ = ()


# Whole coordinates are numbers too: run-time type checks do not take an int for a float.
Number = int | float
Child = str | Number | None


def escape(value: Child) -> Markup:
    """Markup as it is, anything else as escaped text, None as nothing."""
    if value is None:
        return Markup("")
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(children: Iterable[Child], separator: str = "") -> Markup:
    return Markup(separator.join(escape(child) for child in children))


def el(name: str, /, *children: Child, **attributes: str | Number | bool | None) -> Markup:
    """An element. `class_` and `for_` lose their underscore, other underscores become hyphens;
    True gives a bare attribute, False and None none."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(str(value), quote=True)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(children)}</{name}>")


def rounded(value: Number) -> str:
    """A coordinate with at most one decimal: enough for the eye, and it keeps pages small."""
    return f"{value:.1f}".removesuffix(".0")
