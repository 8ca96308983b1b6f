"""Prompts of the needle tasks, fitted to a context length in the tokens of a given tokenizer."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from ratjax.errors import InputError
from ratjax.needle.encoding import check_values, count, plain, token_span
from ratjax.needle.essays import Essays, load_essays
from ratjax.needle.fitting import Growth, essay_growth, fit, line_growth
from ratjax.needle.prompts import Draft
from ratjax.needle.tasks import Task, find_task

# Tokens encoded together. An encoding holds about 200 bytes a token.
_TOKENS_AT_ONCE = 2**18


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of its final length, drawn or read from a file.

    Attributes:
      task: its name.
      text: the prompt.
      answers: the right answers, in the order of the question.
      spans: where each answer stands in the text: characters from, up to without.
      encoding: the text's tokens.
    """

    task: str
    text: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    encoding: Encoding


@dataclasses.dataclass(frozen=True)
class DrawnPrompt(Prompt):
    """A prompt with all that is known of how it was drawn.

    Attributes:
      draft: what was drawn.
      units: words (essay) or lines of haystack.
    """

    draft: Draft
    units: int


def generate(
    task: str | Task,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    samples: int,
    seed: int,
    haystack: str | Path | Essays | None = None,
    tokens_to_generate: int = 128,
) -> list[dict[str, Any]]:
    """Draws prompts of one needle task.

    Row i depends on the arguments and i, not on `samples`; the same arguments give the same rows
    in every process. Every prompt gets as much haystack as fits: one more unit (a word of an
    essay, a line of noise or needles) would exceed the length. A prompt may be left with no
    haystack at all where its needles fit and nothing else does: MK-2 and MK-3 are then without
    distractors, so choose a length that leaves room for some.

    The prompt ends with the question: RULER's `answer_prefix` is not part of it (nor of its
    `input` since 2025), and is not counted in the length.

    Args:
      task: RULER's name, such as `niah_single_1`, or a `Task`.
      tokenizer: whose tokens are counted, without special tokens. Its padding and truncation are
        ignored.
      context_length: tokens of prompt and answer together: the prompt has at most
        `context_length - tokens_to_generate`.
      samples: rows.
      seed: other seeds, other rows. RULER's default is 42.
      haystack: for tasks with essays: a folder of .txt files, ready `Essays`, or None for the
        default of `load_essays`.
      tokens_to_generate: tokens left free for the answer.

    Returns:
      One dictionary a row:
        input: the prompt.
        outputs: the answers, in the order of the question.
        answer_token_position: index in the prompt's tokens of the first token of `outputs[0]`.
        answer_token_spans: [from, up to without] of every answer, in the order of `outputs`. A
          token that also holds a neighbouring character (a space, the full stop) belongs to it.
        length: tokens of `input`.
        task: the task's name.
        index: the row's number.

    Raises:
      InputError: no such task; a context too short for the task's needles; a tokenizer that
        cannot express the answers; a folder of essays that is missing or empty; a number below 1.
    """
    prompts = draw_prompts(
        task,
        tokenizer,
        context_length=context_length,
        samples=samples,
        seed=seed,
        haystack=haystack,
        tokens_to_generate=tokens_to_generate,
    )
    return [row_of(prompt, index) for index, prompt in enumerate(prompts)]


def draw_prompts(
    task: str | Task,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    samples: int,
    seed: int,
    haystack: str | Path | Essays | None = None,
    tokens_to_generate: int = 128,
    first: int = 0,
) -> Iterator[DrawnPrompt]:
    """As `generate`, with all that is known of a prompt, starting with row `first`."""
    task = find_task(task)
    for name, value in (
        ("context_length", context_length),
        ("samples", samples),
        ("tokens_to_generate", tokens_to_generate),
    ):
        if value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
    tokenizer = plain(tokenizer)
    for kind in (task.value_type, task.key_type):
        check_values(tokenizer, kind)
    essays = None
    if task.haystack == "essay":
        essays = haystack if isinstance(haystack, Essays) else load_essays(haystack)

    def draft(index: int) -> Draft:
        return Draft(task, seed, index, essays)

    def fitted() -> Iterator[DrawnPrompt]:
        budget = context_length - tokens_to_generate
        at_once = max(1, _TOKENS_AT_ONCE // context_length)
        growth = None
        for start in range(first, first + samples, at_once):
            indices = range(start, min(start + at_once, first + samples))
            drafts = [draft(index) for index in indices]
            bare = count(tokenizer, [each.text(0) for each in drafts])
            if max(bare) > budget:
                most = max(
                    count(tokenizer, [draft(i).text(0) for i in range(first, first + samples)])
                )
                raise InputError(
                    f"context_length={context_length}: too short for {task.name}, whose needles "
                    f"and question take {most} tokens and tokens_to_generate={tokens_to_generate} "
                    f"more; give at least {most + tokens_to_generate}"
                )
            if growth is None:
                growth = _growth(draft(0), essays, tokenizer, budget)
            found = fit(drafts, bare, tokenizer, budget, growth)
            for each, (units, encoding) in zip(drafts, found, strict=True):
                text = each.text(units)
                answers, spans = tuple(each.answers), tuple(each.answer_spans(text))
                yield DrawnPrompt(task.name, text, answers, spans, encoding, each, units)

    return fitted()


def _growth(draft: Draft, essays: Essays | None, tokenizer: Tokenizer, budget: int) -> Growth:
    if essays is None:
        return line_growth(draft, tokenizer)
    return essay_growth(essays, tokenizer, budget)


def row_of(prompt: Prompt, index: int) -> dict[str, Any]:
    """What `generate` returns of a prompt."""
    spans = [list(token_span(prompt.encoding, *span)) for span in prompt.spans]
    return {
        "input": prompt.text,
        "outputs": list(prompt.answers),
        "answer_token_position": spans[0][0],
        "answer_token_spans": spans,
        "length": len(prompt.encoding.ids),
        "task": prompt.task,
        "index": index,
    }
