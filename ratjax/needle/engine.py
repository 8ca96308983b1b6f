"""The evaluation engine: one model, every setting, every task, on the same prompts."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ratjax.config.needle import NeedleConfig, Setting
from ratjax.errors import InputError
from ratjax.model import Decoder, generation
from ratjax.needle import score
from ratjax.needle.drawing import draw_prompts, row_of
from ratjax.needle.essays import load_essays
from ratjax.needle.intervals import confidence_interval
from ratjax.needle.settings import SPARSE_PHASES, identity, pattern_of

PHASES = ("prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, tokenised once and run under every setting."""

    row: dict[str, Any]
    tokens: np.ndarray

    @property
    def number(self) -> int:
        """Tells prompts apart to random selectors, the same in every batch and backbone."""
        return self.row["number"]


def build_prompts(config: NeedleConfig, samples: int, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of all tasks: `samples` each, the same for every setting and backbone.

    Raises:
      InputError: a context too short for a task, a tokenizer that cannot express the answers,
        an essay folder that is missing or empty.
    """
    haystack = load_essays(config.essays or None)
    prompts: list[Prompt] = []
    for task in config.tasks:
        drawn = draw_prompts(
            task,
            tokenizer,
            context_length=config.context_length,
            samples=samples,
            seed=config.seed,
            haystack=haystack,
            tokens_to_generate=config.tokens_to_generate,
        )
        for index, prompt in enumerate(drawn):
            row = {**row_of(prompt, index), "number": len(prompts)}
            prompts.append(Prompt(row, np.array(prompt.encoding.ids, np.int32)))
    return prompts


STOP_TOKENS = ("<|endoftext|>", "</s>")


def stop_token_of(tokenizer: Tokenizer) -> int:
    """The id of the token that ends an answer: OLMo2's `<|endoftext|>` or Llama's `</s>`.

    Raises:
      InputError: the tokenizer has neither.
    """
    for name in STOP_TOKENS:
        if (found := tokenizer.token_to_id(name)) is not None:
            return found
    raise InputError(f"tokenizer: has none of {', '.join(STOP_TOKENS)}, which end an answer")


def batches(prompts: list[Prompt], size: int) -> Iterator[tuple[list[Prompt], list[Prompt]]]:
    """Prompts of like length together; (the batch, filled up to `size`; those that count).

    The last batch is filled with copies, so that every batch has one shape.
    """
    by_length = sorted(prompts, key=lambda p: (len(p.tokens), p.number))
    for start in range(0, len(by_length), size):
        counted = by_length[start : start + size]
        yield counted + counted[:1] * (size - len(counted)), counted


def run_setting(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
    setting: Setting,
    config: NeedleConfig,
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Answers every prompt under one setting.

    Returns:
      (one record a prompt, in the prompts' order: the answer, both scores in [0, 1], entries
      read; the setting's timing, seconds a prompt without compilation, None if unknown).
    """
    pattern, stop = pattern_of(setting), stop_token_of(tokenizer)
    size = min(config.batch_size, len(prompts))
    width = generation.bucket(max(len(p.tokens) for p in prompts))
    records: dict[int, dict[str, Any]] = {}
    seconds = []
    for filled, counted in batches(prompts, size):
        tokens = np.zeros((size, width), np.int32)
        for i, prompt in enumerate(filled):
            tokens[i, : len(prompt.tokens)] = prompt.tokens
        started = time.perf_counter()
        out = generation.generate(
            model,
            tokens,
            np.array([len(p.tokens) for p in filled]),
            config.tokens_to_generate,
            pattern,
            stop_token=stop,
            seed=setting.selector_seed,
            rows=np.array([p.number for p in filled]),
            width=width,
        )
        answers = np.asarray(out.tokens)
        seconds.append(time.perf_counter() - started)
        reads = {
            phase: (np.asarray(r.read), np.asarray(r.visible))
            for phase, r in (("prefill", out.prefill), ("decode", out.decode))
        }
        for i, prompt in enumerate(counted):
            text = answer_text(tokenizer, answers[i], stop)
            outputs = prompt.row["outputs"]
            records[prompt.number] = {
                "prediction": text,
                "strict": score.strict(text, outputs),
                "ruler": score.ruler(text, outputs),
                "reads": {p: (float(r[i]), float(s[i])) for p, (r, s) in reads.items()},
            }
    steady = seconds[1:]  # the first batch compiles
    timing = {"seconds_per_prompt": sum(steady) / len(steady) / size if steady else None}
    return [records[p.number] for p in prompts], timing


def answer_text(tokenizer: Tokenizer, tokens: np.ndarray, stop: int) -> str:
    """Generated tokens up to the stop token, as text."""
    ends = np.flatnonzero(tokens == stop)
    kept = tokens[: ends[0]] if ends.size else tokens
    return tokenizer.decode(kept.tolist(), skip_special_tokens=False)


def read_fraction(records: Iterable[dict[str, Any]], phases: Iterable[str]) -> float | None:
    """Entries read over entries visible, over all prompts and the given phases."""
    pairs = [record["reads"][phase] for record in records for phase in phases]
    read, visible = (sum(column) for column in zip(*pairs, strict=True))
    return read / visible if visible else None


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    config: NeedleConfig,
    samples: int,
    labels: dict[str, Any],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Evaluates one backbone under every setting of `config`.

    Args:
      model: the backbone.
      tokenizer: its own.
      config: tasks, lengths and settings.
      samples: prompts a task.
      labels: fields copied into every result: run, backbone, train_seed.
      progress: called with one line after each setting.

    Returns:
      (results as `results.json` holds them, one a cell; predictions, one a prompt and setting).

    Raises:
      InputError: see `build_prompts`.
    """
    prompts = build_prompts(config, samples, tokenizer)
    results, predictions = [], []
    settings = config.settings()
    for done, setting in enumerate(settings, start=1):
        records, timing = run_setting(model, tokenizer, prompts, setting, config)
        named = {**labels, "context_length": config.context_length, **identity(setting)}
        strict = []
        for task in config.tasks:
            of_task = [r for r, p in zip(records, prompts, strict=True) if p.row["task"] == task]
            results.append({**named, "task": task, **cell(of_task, setting.method), **timing})
            strict.append(results[-1]["score_strict"])
        for record, prompt in zip(records, prompts, strict=True):
            predictions.append(
                {
                    "setting": named,
                    "task": prompt.row["task"],
                    "index": prompt.row["index"],
                    "input": prompt.row["input"],
                    "outputs": prompt.row["outputs"],
                    **{k: record[k] for k in ("prediction", "strict", "ruler")},
                }
            )
        progress(
            f"[{done}/{len(settings)}] {labels['backbone']} {setting.method} {setting.budget} "
            f"{setting.selector}: mean strict score {np.mean(strict):.1f}"
        )
    return results, predictions


def cell(records: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Scores, interval and cost of one setting on one task."""
    strict = [r["strict"] for r in records]
    fractions = {f"kv_read_fraction_{phase}": read_fraction(records, (phase,)) for phase in PHASES}
    return {
        "score_strict": round(100 * float(np.mean(strict)), 2),
        "score_ruler": round(100 * float(np.mean([r["ruler"] for r in records])), 2),
        "samples": len(records),
        "ci95": [round(x, 2) for x in confidence_interval(strict)],
        "kv_read_fraction": read_fraction(records, SPARSE_PHASES[method]),
        **fractions,
    }
