"""One prompt before its length is known: everything drawn, the amount of haystack still open."""

import random
from collections.abc import Mapping, Sequence

from ratjax.needle import wording
from ratjax.needle.essays import Essays
from ratjax.needle.placement import into_essay, into_lines
from ratjax.needle.tasks import DEPTHS, Task
from ratjax.needle.words import draw_new


class Draft:
    """The prompt number `index` of a task, to be composed with any amount of haystack.

    Everything random depends on (task.name, seed, index) alone: not on how many prompts are
    drawn, nor, but for the lines where needles stand, on the amount of haystack. Python's
    generator is seeded with text, which does not depend on the process's hash seed.

    Attributes:
      needles: key -> values of the needles, without those of a needle haystack.
      queries: the keys that are asked about, in the order of the question.
      answers: their values, in the same order.
    """

    def __init__(self, task: Task, seed: int, index: int, essays: Essays | None):
        self.task = task
        self._stream = f"{task.name}/{seed}/{index}"
        self._essays = essays
        rng = self.rng("needles")
        self._used_keys: set[str] = set()
        self._used_values: set[str] = set()
        self.needles = {
            draw_new(task.key_type, rng, self._used_keys): [
                draw_new(task.value_type, rng, self._used_values) for _ in range(task.values)
            ]
            for _ in range(task.keys)
        }
        self._sentences = [
            wording.needle(task.value_type, key, value)
            for key, values in self.needles.items()
            for value in values
        ]
        # As in RULER, the same permutation in every prompt of a seed.
        random.Random(seed).shuffle(self._sentences)
        if task.haystack == "essay":
            self._depths = sorted(rng.sample(DEPTHS, len(self._sentences)))
        self.queries = rng.sample(list(self.needles), task.queries)
        self.answers = [value for key in self.queries for value in self.needles[key]]
        self._question = wording.question(task.value_type, self.queries, task.singular)
        self._line_rng = self.rng("haystack")
        self._distractors: list[tuple[str, str]] = []

    def rng(self, purpose: str) -> random.Random:
        """A generator of this prompt's own, the same whenever it is asked for."""
        return random.Random(f"{self._stream}/{purpose}")

    def context(self, units: int) -> str:
        """The haystack of `units` words (essay) or lines (noise, needle), needles included."""
        if self.task.haystack == "essay":
            return into_essay(self._essays, units, self._sentences, self._depths)
        # Needles need distinct indices also where the haystack has fewer lines than needles.
        places = range(max(units, len(self._sentences)))
        rng = self.rng(f"lines/{units}")
        return into_lines(
            self.lines(units), self._sentences, rng.sample(places, len(self._sentences))
        )

    def text(self, units: int) -> str:
        """The whole prompt."""
        task = self.task
        opening = wording.opening(task.value_type, task.singular)
        return opening + self.context(units) + self._question

    def facts(self, units: int) -> Mapping[str, Sequence[str]]:
        """key -> values of every needle in the context, those of a needle haystack included."""
        return self.needles | {key: [value] for key, value in self._distractors[:units]}

    def answer_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each answer stands in the prompt: characters from, up to without."""
        spans = []
        for key in self.queries:
            for value in self.needles[key]:
                sentence = wording.needle(self.task.value_type, key, value)
                end = text.index(sentence) + len(sentence) - 1
                spans.append((end - len(value), end))
        return spans

    def lines(self, units: int) -> list[str]:
        """The first `units` lines of a noise or needle haystack."""
        if self.task.haystack == "noise":
            return [wording.NOISE] * units
        task, rng = self.task, self._line_rng
        while len(self._distractors) < units:
            key = draw_new(task.key_type, rng, self._used_keys)
            value = draw_new(task.value_type, rng, self._used_values)
            self._distractors.append((key, value))
        return [wording.needle(task.value_type, k, v) for k, v in self._distractors[:units]]
