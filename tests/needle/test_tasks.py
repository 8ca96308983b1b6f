"""What the eight tasks ask, against RULER's table; the wording, against RULER's own rules."""

import dataclasses
import itertools

import pytest

from ratjax.config.needle import TASKS as CONFIGURED
from ratjax.errors import InputError
from ratjax.needle import TASKS, Task, find_task, wording
from ratjax.needle.tasks import DEPTHS

# haystack, key type, value type, keys, values a key, queries
RULER = {
    "niah_single_1": ("noise", "words", "numbers", 1, 1, 1),
    "niah_single_2": ("essay", "words", "numbers", 1, 1, 1),
    "niah_single_3": ("essay", "words", "uuids", 1, 1, 1),
    "niah_multikey_1": ("essay", "words", "numbers", 4, 1, 1),
    "niah_multikey_2": ("needle", "words", "numbers", 1, 1, 1),
    "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
    "niah_multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "niah_multiquery": ("essay", "words", "numbers", 4, 1, 4),
}


def test_tasks_are_those_of_ruler():
    found = {name: dataclasses.astuple(task)[2:] for name, task in TASKS.items()}
    assert found == RULER


def test_configuration_names_the_same_tasks():
    assert tuple(TASKS) == CONFIGURED


def test_depths_are_forty_from_start_to_end():
    assert len(set(DEPTHS)) == 40 and DEPTHS[0] == 0 and DEPTHS[-1] == 100
    assert max(b - a for a, b in itertools.pairwise(DEPTHS)) == 3


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="niah_multikey_2") as caught:
        find_task("niah_multkey_2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"queries": 2}, "task.queries"),
        ({"keys": 41}, "task.keys"),
        ({"keys": 0}, "task.keys"),
        ({"haystack": "straw"}, "task.haystack"),
    ],
)
def test_impossible_tasks_are_refused(fields, named):
    with pytest.raises(InputError, match=named):
        Task(**({"name": "x", "label": "x", "haystack": "essay"} | TYPES | fields))


TYPES = {"key_type": "words", "value_type": "numbers"}


@pytest.mark.parametrize("kind", ["numbers", "words", "uuids"])
@pytest.mark.parametrize("singular", [True, False])
def test_wording_follows_rulers_replacements(kind, singular):
    """RULER keeps one plural template and replaces words in it, in this order."""
    template = (
        "Some special magic {type} are hidden within the following text. Make sure to memorize "
        "it. I will quiz you about the {type} afterwards.\n{context}\nWhat are all the special "
        "magic {type} for {query} mentioned in the provided text?"
    )
    noun = kind
    if singular:
        for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
            template = template.replace(old, new)
        noun = kind[:-1]
    expected = template.format(type=noun, context="HAY", query="a-key")
    built = wording.opening(kind, singular) + "HAY" + wording.question(kind, ["a-key"], singular)
    assert built == expected


def test_listing_of_queries():
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b"]) == "a, and b"
    assert wording.listing(["a", "b", "c", "d"]) == "a, b, c, and d"
