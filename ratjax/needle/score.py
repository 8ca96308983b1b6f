"""The two scores of a prediction, each between 0 and 1."""

from collections.abc import Sequence


def strict(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers among the prediction's items, compared as they are.

    The score of the released RAT+ code: the prediction is cut at every comma, white space around
    the items is dropped, and items and answers are compared as sets. An item merged with another
    or with other words counts for nothing; an item too many costs nothing.

    Args:
      prediction: generated text, up to the stop token.
      answers: at least one; one that is given twice counts once.
    """
    items = {item.strip() for item in prediction.split(",")}
    gold = set(answers)
    return len(items & gold) / len(gold)


def ruler(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers found anywhere in the prediction, upper or lower case.

    RULER's `string_match_all`.

    Args:
      prediction: generated text.
      answers: at least one; one that is given twice counts twice.
    """
    text = prediction.lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def percent(scores: Sequence[float | int]) -> float:
    """Mean of the prompts' scores times 100; publications round it to two decimals."""
    return 100 * sum(scores) / len(scores)
