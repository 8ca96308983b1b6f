"""The evaluation engine: one model, every setting, every task, on the same prompts.

Prompts are sorted by length and run in batches; each batch is read once for all settings that share
a prefill and answered under one after the other. Every answer goes into a journal as it comes, so
that a killed evaluation goes on where it stopped.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import TextIOBase
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from ratjax.config.needle import NeedleConfig, Setting
from ratjax.config.overrides import to_json
from ratjax.data.encoding import digest
from ratjax.errors import InputError
from ratjax.model import Decoder
from ratjax.model.parameters import checksum
from ratjax.needle import cells, drawing, hits
from ratjax.needle.batching import Batch, Prompt, batches
from ratjax.needle.drawing import draw_prompts, row_of
from ratjax.needle.essays import load_essays
from ratjax.needle.files import read_prompts
from ratjax.needle.journal import Journal, Line, in_first_process
from ratjax.needle.progress import Progress
from ratjax.needle.runner import Answers, Runner, groups, parts
from ratjax.needle.settings import identity
from ratjax.sharding import on_mesh

Say = Callable[[str], None]
Found = dict[tuple[int, int], Line]  # by setting and prompt number


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one backbone's evaluation found.

    Attributes:
      results: rows of `results.json`, one a cell.
      predictions: one a setting and prompt, in that order; a prompt is named by its `prompt_id`.
      prompts: the prompts, once each.
      timing: measured times, one row a setting.
      hits: hit rates, one row a cell of a method that has them, where they were asked for.
    """

    results: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    prompts: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    hits: list[dict[str, Any]]


def build_prompts(config: NeedleConfig, samples: int, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of all tasks: `samples` each, the same for every setting and backbone.

    With `config.files` they are those of the files, the first `samples` of each task that has any.

    Raises:
      InputError: a context too short for a task, a tokenizer that cannot express the answers,
        an essay folder that is missing or empty; a file that is not as RULER writes it.
    """
    targeted = config.hit_rates or any(setting.golden for setting in config.settings())
    prompts: list[Prompt] = []
    for drawn in _by_task(config, samples, tokenizer):
        for index, prompt in drawn:
            row = {**row_of(prompt, index), "number": len(prompts)}
            answer, needed = hits.targets(prompt, tokenizer) if targeted else ((), ())
            tokens = np.array(prompt.encoding.ids, np.int32)
            prompts.append(Prompt(row, tokens, tuple(answer), tuple(needed)))
    return prompts


def _by_task(
    config: NeedleConfig, samples: int, tokenizer: Tokenizer
) -> Iterator[Iterable[tuple[int, drawing.Prompt]]]:
    """Each task's prompts with their indices."""
    if config.files:
        longest = config.context_length - config.tokens_to_generate
        given = read_prompts(config.files, tokenizer, config.tasks, samples, longest)
        yield from given.values()
        return
    haystack = load_essays(config.essays or None)
    for task in config.tasks:
        yield enumerate(
            draw_prompts(
                task,
                tokenizer,
                context_length=config.context_length,
                samples=samples,
                seed=config.seed,
                haystack=haystack,
                tokens_to_generate=config.tokens_to_generate,
            )
        )


def tasks_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The tasks that have prompts, in their order."""
    return tuple(dict.fromkeys(prompt.row["task"] for prompt in prompts))


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


def answer_text(tokenizer: Tokenizer, tokens: np.ndarray, stop: int) -> str:
    """Generated tokens up to the stop token, as text."""
    ends = np.flatnonzero(tokens == stop)
    kept = tokens[: ends[0]] if ends.size else tokens
    return tokenizer.decode(kept.tolist(), skip_special_tokens=False)


def prompt_id(row: dict[str, Any]) -> str:
    """Names a prompt by its text and answers, alike in every run and file."""
    content = json.dumps([row["input"], row["outputs"]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    config: NeedleConfig,
    samples: int,
    labels: dict[str, Any],
    journal: Journal | None = None,
    say: Say = lambda _: None,
    stream: TextIOBase | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Evaluates one backbone under every setting of `config`.

    Args:
      model: the backbone, on the mesh where there is one.
      tokenizer: its own.
      config: tasks, lengths and settings.
      samples: prompts a task.
      labels: fields copied into every result: run, backbone, train_seed.
      journal: where answers are kept as they come; what it holds of this backbone is not run
        again. None keeps them in memory alone.
      say: called with one line a setting at the end.
      stream: where progress is shown; standard error by default.
      mesh: the devices to spread it over, those of other processes too: each calls this function,
        only the first with a journal, and all return the same but for times.

    Raises:
      InputError: see `build_prompts` and `Journal.begin`.
    """
    prompts = build_prompts(config, samples, tokenizer)
    settings = config.settings()
    lines = _run(model, tokenizer, config, prompts, samples, labels, journal, stream, mesh)
    found: Found = {(line["setting"], line["prompt"]): line for line in lines if "prompt" in line}
    results, predictions, timing, hit_rates = [], [], [], []
    for place, setting in enumerate(settings):
        named = {**labels, "context_length": config.context_length, **identity(setting)}
        answered = [(p.row, found[place, p.number]) for p in prompts]
        strict = []
        for task in tasks_of(prompts):
            of_task = [pair for pair in answered if pair[0]["task"] == task]
            cell = cells.cell(model.config, setting, of_task)
            results.append({**named, "task": task, **cell})
            strict.append(cell["score_strict"])
            if config.hit_rates and setting.method in hits.WATCHED:
                heads = (model.config.num_layers, model.config.num_heads)
                hit_rates.append({**named, "task": task, **hits.summary(of_task, *heads)})
        predictions += [_prediction(named, row, line) for row, line in answered]
        seconds = [x["seconds"] for x in lines if "seconds" in x and x["setting"] == place]
        timing.append({**named, **cells.timing(seconds)})
        say(
            f"[{place + 1}/{len(settings)}] {labels['backbone']} {setting.method} "
            f"{setting.budget} {setting.selector}: mean strict score {np.mean(strict):.1f}"
        )
    stored = [_stored(p.row) for p in prompts]
    return Evaluation(results, predictions, stored, timing, hit_rates)


def _run(
    model: Decoder,
    tokenizer: Tokenizer,
    config: NeedleConfig,
    prompts: Sequence[Prompt],
    samples: int,
    labels: dict[str, Any],
    journal: Journal | None,
    stream: TextIOBase | None,
    mesh: Mesh | None,
) -> list[Line]:
    """Answers what the journal does not hold yet; returns all of the backbone's lines."""
    settings, stop = config.settings(), stop_token_of(tokenizer)
    bits = on_mesh(mesh, checksum)(model)  # by all processes

    def earlier() -> list[Line]:
        if journal is None:
            return []
        depends_on = {
            "labels": labels,
            "samples": samples,
            "needle": to_json(config),
            "model": to_json(model.config),
            "parameters": bits,
            "tokenizer": digest(tokenizer),
        }
        if config.files:  # whose contents may change while their names stay
            depends_on["prompts"] = [prompt_id(p.row) for p in prompts]
        return journal.begin(labels["backbone"], depends_on)

    lines = in_first_process(earlier)
    done = {(line["setting"], line["prompt"]) for line in lines if "prompt" in line}
    longest = max((len(p.answer) for p in prompts), default=0)
    runner = Runner(model, config, settings, stop, longest, mesh)
    size, rows = (parts(mesh) * n for n in (config.batch_size, config.prefill_batch or 1))
    progress = Progress(labels["backbone"], len(settings) * len(prompts), len(done), stream)
    try:
        for batch in batches(prompts, size, rows):
            numbers = [p.number for p in batch.prompts]
            for group in groups(settings):
                wanted = [p for p in group.places if any((p, n) not in done for n in numbers)]
                if not wanted:
                    continue
                for answers in runner.run(batch, group, wanted):
                    found = _lines(labels["backbone"], batch, answers, tokenizer, stop)
                    if journal is not None:
                        journal.add(found)
                    lines += found
                    new = sum((answers.place, n) not in done for n in numbers)
                    progress.add(new, _name(settings[answers.place]))
    finally:
        progress.close()
    return lines


def _lines(
    backbone: str, batch: Batch, answers: Answers, tokenizer: Tokenizer, stop: int
) -> list[Line]:
    """A batch's answers as the journal keeps them, and its times."""
    where = {"backbone": backbone, "setting": answers.place}
    ended = answers.tokens == stop
    counts = np.where(ended.any(1), ended.argmax(1) + 1, ended.shape[1])
    lines = [
        {
            **where,
            "prompt": prompt.number,
            "prediction": answer_text(tokenizer, tokens, stop),
            "tokens": int(count),
            "reads": reads.tolist(),
        }
        for prompt, tokens, count, reads in zip(
            batch.prompts, answers.tokens, counts, answers.reads, strict=False
        )
    ]
    if answers.hits is not None:
        for row, line in enumerate(lines):
            line["hits"] = hits.pack(answers.hits[:, row])
    seconds = {
        "prefill": answers.prefill_seconds,
        "decode": answers.decode_seconds,
        "rows": len(batch.lengths),
        "tokens": int((counts - 1).sum()),
        "compiled": answers.compiled,
    }
    return [*lines, {**where, "seconds": seconds}]


def _name(setting: Setting) -> str:
    return " ".join([setting.method, setting.budget, setting.selector])


def _prediction(named: dict[str, Any], row: dict[str, Any], line: Line) -> dict[str, Any]:
    return {
        "setting": named,
        "task": row["task"],
        "index": row["index"],
        "prompt": prompt_id(row),
        "prediction": line["prediction"],
        **cells.scores(line, row["outputs"]),
    }


def _stored(row: dict[str, Any]) -> dict[str, Any]:
    fields = ("task", "index", "length", "answer_token_position", "outputs", "input")
    return {"prompt": prompt_id(row), **{field: row[field] for field in fields}}
