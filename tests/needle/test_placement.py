"""Where needles stand."""

import collections
import itertools

from ratjax.needle import TASKS, Essays
from ratjax.needle.placement import into_essay, into_lines
from ratjax.needle.prompts import Draft
from ratjax.needle.tasks import DEPTHS

ESSAYS = Essays("A one. B two. C three. D four. E five")


def test_needles_follow_the_sentence_of_their_depth():
    text = into_essay(ESSAYS, 10, ["[x]", "[y]", "[z]"], [0, 41, 100])
    # 5 sentences: after 0, after floor(5 * 0.41) = 2, after all of them
    assert text == "[x] A one. B two. [y] C three. D four. E five [z]"


def test_a_cut_sentence_counts_and_stays_cut():
    assert into_essay(ESSAYS, 3, ["[x]"], [50]) == "A one. [x] B"
    assert into_essay(ESSAYS, 3, ["[x]"], [100]) == "A one. B [x]"


def test_needles_may_share_a_place_and_need_no_haystack():
    assert into_essay(ESSAYS, 2, ["[x]", "[y]"], [0, 3]) == "[x] [y] A one."
    assert into_essay(ESSAYS, 0, ["[x]", "[y]"], [0, 100]) == "[x] [y]"


def test_essays_start_again():
    text = into_essay(ESSAYS, 14, ["[x]"], [72])  # 7 sentences, floor(5.04) = 5
    assert text == f"{ESSAYS.text} [x] A one. B two."


def test_lines_take_needles_from_the_last_index_up():
    lines = ["a", "b", "c", "d"]
    assert into_lines(lines, ["[x]", "[y]"], [1, 3]).split("\n") == [
        "a",
        "[y]",
        "b",
        "c",
        "[x]",
        "d",
    ]
    assert into_lines([], ["[x]"], [0]) == "[x]"


def test_lines_are_chosen_uniformly_in_small_contexts():
    task, units, draws = TASKS["niah_multikey_2"], 6, 1200
    found = collections.Counter()
    for index in range(draws):
        draft = Draft(task, 3, index, None)
        lines = draft.context(units).split("\n")
        found[next(i for i, x in enumerate(lines) if draft.queries[0] in x)] += 1
    # As in RULER the needle stands before one of the six lines, never behind the last one.
    assert set(found) == set(range(units))
    # Binomial(1200, 1/6) has a standard deviation of 12.9; five of them.
    assert all(abs(count - draws / units) < 65 for count in found.values())


def test_sentences_are_chosen_evenly_in_small_contexts(essays):
    task, units, draws = TASKS["niah_single_2"], 120, 1200
    sentences = essays.sentences(units)
    assert sentences >= 6
    starts = [
        len(essays.head(essays.sentence_end(s) if s else 0)) + (1 if s else 0)
        for s in range(sentences)
    ] + [len(essays.head(units)) + 1]
    found = collections.Counter()
    for index in range(draws):
        draft = Draft(task, 3, index, essays)
        before = draft.context(units).index("One of the special magic numbers for")
        found[starts.index(before)] += 1
    # Every place gets the share of the forty depths that lead to it: the end one, the others
    # six or so. Five standard deviations of a share of 1200 draws.
    for place in range(sentences + 1):
        share = sum(sentences * depth // 100 == place for depth in DEPTHS) / len(DEPTHS)
        assert 0 < share < 0.2
        assert abs(found[place] / draws - share) < 5 * (share * (1 - share) / draws) ** 0.5


def test_needles_of_one_prompt_stand_at_different_depths(essays):
    draft = Draft(TASKS["niah_multikey_1"], 0, 0, essays)
    context = draft.context(1500)
    places = sorted(context.index(f"for {key} is: ") for key in draft.needles)
    assert min(b - a for a, b in itertools.pairwise(places)) > 90


def test_the_asked_key_is_any_of_the_needles(essays):
    """Else a model could answer with, say, the first needle."""
    ranks = collections.Counter()
    for index in range(400):
        draft = Draft(TASKS["niah_multikey_1"], 0, index, essays)
        context = draft.context(300)
        order = sorted(draft.needles, key=lambda key: context.index(f"for {key} is: "))
        ranks[order.index(draft.queries[0])] += 1
    # Binomial(400, 1/4): standard deviation 8.7, five of them.
    assert all(abs(ranks[rank] - 100) < 44 for rank in range(4))
