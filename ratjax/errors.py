"""Errors that are the user's to mend.

Every command catches `InputError`, prints its one line and exits with status 2; anything
else is a defect and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one line naming what is wrong, its value and the remedy."""


class ConfigError(InputError):
    """A configuration field whose value cannot be used.

    The message reads `field=value: rule; remedy`.
    """

    def __init__(self, field: str, value: object, problem: str):
        self.field, self.value = field, value
        super().__init__(f"{field}={value!r}: {problem}")


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A hint naming the closest candidates, or all of them where none is close."""
    candidates = sorted(candidates)
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(candidates)


def check_choice(field: str, value: object, choices: Iterable[str]) -> None:
    """Raises `ConfigError` unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(field, value, f"must be one of {', '.join(map(repr, choices))}")


def check_positive(field: str, value: int | float) -> None:
    """Raises `ConfigError` unless `value` is above zero."""
    if not value > 0:
        raise ConfigError(field, value, "must be above 0")
