"""Our prompts against what RULER's own generator makes, in everything that no seed decides.

What is expected is written out here from NVIDIA/RULER: scripts/data/synthetic/constants.py (the
template), niah.py (needles, depths, lengths) and scripts/synthetic.yaml (the tasks). The prompts
are taken apart again, so that nothing of our own wording is trusted.
"""

import random
import re

import numpy as np
import pytest

from ratjax.needle import TASKS, generate
from ratjax.needle.drawing import draw_prompts
from ratjax.needle.prompts import Draft
from ratjax.needle.tasks import DEPTHS

ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n{context}\nWhat is the special magic {kind} for "
    "{query} mentioned in the provided text?"
)
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} "
    "for {query} mentioned in the provided text?"
)
NEEDLE = "One of the special magic {kinds} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
# template, type of value as the template has it, needles inserted, their keys, keys asked for
EXPECTED = {
    "niah_single_1": (ONE, "number", 1, 1, 1),
    "niah_single_2": (ONE, "number", 1, 1, 1),
    "niah_single_3": (ONE, "uuid", 1, 1, 1),
    "niah_multikey_1": (ONE, "number", 4, 4, 1),
    "niah_multikey_2": (ONE, "number", 1, 1, 1),
    "niah_multikey_3": (ONE, "uuid", 1, 1, 1),
    "niah_multivalue": (SEVERAL, "numbers", 4, 1, 1),
    "niah_multiquery": (SEVERAL, "numbers", 4, 4, 4),
}
# Of a haystack of needles every line is one.
ALL_NEEDLES = ("niah_multikey_2", "niah_multikey_3")
NUMBER, WORDS = r"[1-9][0-9]{6}", r"(?:ad )?[A-Za-z-]+"  # one adjective is "ad hoc"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def find_needles(name, text):
    """[(key, value)] of all needles in a prompt, by RULER's sentence and its types."""
    kinds = EXPECTED[name][1].rstrip("s") + "s"
    key, value = (UUID if name == "niah_multikey_3" else WORDS), {"n": NUMBER, "u": UUID}[kinds[0]]
    pattern = re.escape(NEEDLE).replace(r"\{kinds\}", kinds)
    pattern = pattern.replace(r"\{key\}", f"({key})").replace(r"\{value\}", f"({value})")
    return re.findall(pattern, text)


def asked(name, text):
    """The keys of the question, and the prompt's context."""
    template, kind, *_ = EXPECTED[name]
    pattern = re.escape(template).replace(r"\{kind\}", kind)
    pattern = pattern.replace(r"\{context\}", "(.*)").replace(r"\{query\}", "([^\n]*)")
    context, query = re.fullmatch(pattern, text, re.DOTALL).groups()
    keys = query.replace(", and ", ", ").split(", ")
    # RULER joins several keys with commas, and with a comma before "and" as well.
    assert query == (", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0])
    return keys, context


@pytest.mark.parametrize("name", TASKS)
def test_every_character_but_the_drawn_ones_is_rulers(name, tokenizer, essays):
    """The whole prompt is put together again from what was drawn, with RULER's text."""
    _, kind, inserted, keys, queries = EXPECTED[name]
    kinds = kind.rstrip("s") + "s"
    for row in generate(name, tokenizer, context_length=900, samples=5, seed=42, haystack=essays):
        query, context = asked(name, row["input"])
        needles = find_needles(name, context)
        sentences = [NEEDLE.format(kinds=kinds, key=key, value=value) for key, value in needles]
        if name in ALL_NEEDLES:
            assert context == "\n".join(sentences) and len(needles) > 5
        elif name == "niah_single_1":
            lines = context.split("\n")
            assert sorted(set(lines)) == sorted({NOISE, *sentences})
            assert len(lines) > 5 and len(needles) == inserted
        else:
            assert len(needles) == inserted
            for sentence in sentences:
                context = context.replace(sentence, "")
            words = context.split()
            assert words == essays.text.split()[: len(words)] and len(words) > 100
        if name not in ALL_NEEDLES:
            assert len({key for key, _ in needles}) == keys
        assert len(query) == queries and set(query) <= {key for key, _ in needles}
        # Answers: every value of every key asked for, in the order of the question.
        values = {key: [v for k, v in needles if k == key] for key in query}
        assert sorted(row["outputs"]) == sorted(v for key in query for v in values[key])
        places = [query.index(next(k for k, v in needles if v == out)) for out in row["outputs"]]
        assert places == sorted(places)


def test_essay_pieces_are_joined_by_one_space(essays):
    """The one place where a character may differ: RULER joins empty pieces too, and so leaves two
    spaces where two needles meet, and one where a needle begins or ends the text."""
    for index in range(40):
        draft = Draft(TASKS["niah_multikey_1"], 42, index, essays)
        context = draft.context(60)
        assert "  " not in context and context == context.strip()


def test_depths_are_rulers():
    """Forty, evenly from 0 to 100, rounded to whole percents as numpy does."""
    assert list(DEPTHS) == np.round(np.linspace(0, 100, num=40)).astype(int).tolist()


@pytest.mark.parametrize("name", ["niah_single_2", "niah_multikey_1", "niah_multivalue"])
def test_needles_stand_as_deep_as_rulers(name, essays):
    """Sentences before each needle, by rank, against RULER's rule drawn independently."""
    task, draws, words = TASKS[name], 400, 1200
    sentences = essays.sentences(words)
    count = task.needles
    ours = np.zeros((draws, count))
    for index in range(draws):
        draft = Draft(task, 7, index, essays)
        context = draft.context(words)
        start, before = 0, 0
        for rank, match in enumerate(re.finditer(r"One of the special [^:]*: \d+\.", context)):
            before += len(context[start : match.start()].split())
            ours[index, rank] = essays.sentences(before)
            start = match.end()
    rng = random.Random(0)
    theirs = np.array(
        [
            sorted(int(sentences * (depth / 100)) for depth in rng.sample(DEPTHS, count))
            for _ in range(4000)
        ]
    )
    for rank in range(count):
        grid = np.arange(sentences + 1)
        own, reference = (
            np.searchsorted(np.sort(side[:, rank]), grid, side="right") / len(side)
            for side in (ours, theirs)
        )
        # Kolmogorov and Smirnov's bound at 1 %; a sentence's rounding shifts no more than 1/40.
        bound = 1.63 * (1 / draws + 1 / len(theirs)) ** 0.5 + 1 / 40
        assert np.abs(own - reference).max() < bound


@pytest.mark.parametrize(
    "name, step", [("niah_single_2", 500), ("niah_single_1", 5), ("niah_multikey_2", 5)]
)
def test_prompts_fill_the_budget_at_least_as_well(name, step, tokenizer, essays):
    """RULER's length counts the answer's 128 tokens in, and is at most the maximum. Its haystack
    grows in steps (below 4096 tokens 5 lines; 500 words): ours holds as many steps, and the part
    of another that fits."""
    maximum = 2500
    for prompt in draw_prompts(
        name, tokenizer, context_length=maximum, samples=3, seed=42, haystack=essays
    ):
        assert len(prompt.encoding.ids) + 128 <= maximum
        steps = prompt.units // step
        assert steps > 0
        for amount, fits in ((steps * step, True), ((steps + 1) * step, False)):
            tokens = len(tokenizer.encode(prompt.draft.text(amount)).ids)
            assert (tokens + 128 <= maximum) == fits
