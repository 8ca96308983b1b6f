"""Supervised rows from needle prompts, as in the released RAT+ code.

A row is the prompt, the answers joined by commas without a space, and the end-of-text token up to
the row's length; the loss is on the answer tokens and one end-of-text token. Prompt and answer are
tokenised apart and concatenated, as they are when a model generates: its answer starts after the
prompt's last token.
"""

import collections
import dataclasses
import importlib.metadata
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer

from ratjax.data.encoding import digest
from ratjax.errors import InputError, check_positive
from ratjax.needle import wording
from ratjax.needle.copying import CopyRows, copy_rows
from ratjax.needle.drawing import DrawnPrompt, draw_prompts
from ratjax.needle.drills import DrillRows, drill_rows
from ratjax.needle.encoding import encode, plain
from ratjax.needle.essays import Essays
from ratjax.needle.rowfile import Rows
from ratjax.needle.tasks import Task, find_task

# Prompts whose answers are tokenised together.
_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class NeedleRows:
    """Rows of one task.

    Attributes:
      task: RULER's name or a `Task`.
      rows: how many.
      context_length: of the prompts, as for `generate`.
      tokens_to_generate: likewise. What the prompt leaves free has to hold answer and end.
      questions: questions a row, at most. Published rows have one. The further ones have the
        template's wording, each for one key of the context that was not asked for yet (with a
        needle haystack: any of its lines), and are added while the row's length holds them: after
        an answer and its end-of-text token comes the next question, and the loss is on every
        answer with its end-of-text token. A task with one key has no further question to ask.
    """

    task: str | Task
    rows: int
    context_length: int
    tokens_to_generate: int = 128
    questions: int = 1

    def __post_init__(self):
        check_positive("rows.rows", self.rows)
        check_positive("rows.questions", self.questions)


Part = NeedleRows | CopyRows | DrillRows


def build_rows(
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    *,
    length: int,
    eos_id: int,
    seed: int,
    haystack: str | Path | Essays | None = None,
    shuffle: bool = True,
) -> Rows:
    """Builds the rows of all parts.

    Args:
      parts: what the rows are made of. A second part of the same task goes on where the first
        one stopped, so none of its prompts are the same.
      tokenizer: the model's.
      length: tokens a row.
      eos_id: ends an answer and fills the row.
      seed: of prompts, copies and order. Prompts to be evaluated need another seed.
      haystack: as for `generate`.
      shuffle: whether the rows' order is random, or that of the parts.

    Raises:
      InputError: as `generate`; an `eos_id` outside the vocabulary; a row that is too short for
        a prompt with its answer.
    """
    if not parts:
        raise InputError("parts: none given; name at least one task")
    if not 0 <= eos_id < tokenizer.get_vocab_size():
        raise InputError(
            f"eos_id={eos_id}: outside the tokenizer's vocabulary of {tokenizer.get_vocab_size()}"
        )
    tokenizer = plain(tokenizer)
    built, drawn = [], collections.Counter()
    for number, part in enumerate(parts):
        if isinstance(part, CopyRows):
            rng = np.random.default_rng([seed, number])
            built.append(copy_rows(part, tokenizer, length, rng))
        elif isinstance(part, DrillRows):
            rng = np.random.default_rng([seed, number])
            built.append(drill_rows(part, tokenizer, length, eos_id, rng))
        else:
            name = find_task(part.task).name
            prompts = draw_prompts(
                part.task,
                tokenizer,
                context_length=part.context_length,
                samples=part.rows,
                seed=seed,
                haystack=haystack,
                tokens_to_generate=part.tokens_to_generate,
                first=drawn[name],
            )
            drawn[name] += part.rows
            built.append(_needle_rows(prompts, part, tokenizer, length, eos_id))
    tokens, mask = (np.concatenate(arrays) for arrays in zip(*built, strict=True))
    if shuffle:
        order = np.random.default_rng(seed).permutation(len(tokens))
        tokens, mask = tokens[order], mask[order]
    index = {
        "seed": seed,
        "tasks": _counts(parts),
        "parts": [_describe(part) for part in parts],
        "eos_id": eos_id,
        "shuffled": shuffle,
        "tokenizer_sha256": digest(tokenizer),
        "version": importlib.metadata.version("ratjax"),
    }
    return Rows(tokens, mask, index)


def _needle_rows(
    prompts: Iterator[DrawnPrompt], part: NeedleRows, tokenizer: Tokenizer, length: int, eos_id: int
) -> tuple[Int32[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    tokens = np.full((part.rows, length), eos_id, np.int32)
    mask = np.zeros((part.rows, length), bool)
    row = 0
    while batch := list(itertools.islice(prompts, _AT_ONCE)):
        turns = [_turns(prompt, part.questions) for prompt in batch]
        found = encode(tokenizer, [text for each in turns for turn in each for text in turn])
        pieces = iter([piece.ids for piece in found])
        for prompt, each in zip(batch, turns, strict=True):
            at = len(prompt.encoding.ids)
            tokens[row, :at] = prompt.encoding.ids[:length]
            for number in range(len(each)):
                question, answer = next(pieces), next(pieces)
                stop = at + len(question) + len(answer) + 1
                if stop <= length:
                    tokens[row, at : stop - 1] = question + answer
                    mask[row, at + len(question) : stop] = True
                    at = stop
                elif number == 0:
                    raise InputError(
                        f"length={length}: a prompt of {at} tokens with its answer and the end "
                        f"takes {stop}; raise length, or tokens_to_generate="
                        f"{part.tokens_to_generate} that the prompt leaves free"
                    )
            row += 1
    return tokens, mask


def _turns(prompt: DrawnPrompt, questions: int) -> list[tuple[str, str]]:
    """Each question's text and its answers; the first one's text ends the prompt already."""
    draft = prompt.draft
    turns = [("", ",".join(draft.answers))]
    if questions > 1:
        facts = draft.facts(prompt.units)
        others = [key for key in facts if key not in draft.queries]
        asked = draft.rng("questions").sample(others, min(questions - 1, len(others)))
        for key in asked:
            text = wording.question(draft.task.value_type, [key], len(facts[key]) == 1)
            turns.append((text, ",".join(facts[key])))
    return turns


def _counts(parts: Sequence[Part]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for part in parts:
        kind = _kind(part)
        counts[find_task(part.task).name if kind == "needle" else kind] += part.rows
    return dict(counts)


def _describe(part: Part) -> dict[str, Any]:
    return {"kind": _kind(part), **dataclasses.asdict(part)}


def _kind(part: Part) -> str:
    return {CopyRows: "copy", DrillRows: "drill", NeedleRows: "needle"}[type(part)]
