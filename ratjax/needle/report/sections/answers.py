"""The browser of answers: data for the script, and the place where it builds its view."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ratjax.needle.report import labels
from ratjax.needle.report.content import Content
from ratjax.needle.report.markup import Markup, el
from ratjax.needle.report.records import Setting
from ratjax.needle.report.sections.common import note, section
from ratjax.needle.report.summary import group_label

# The rest of the page takes well under 1 MB; together they stay below 5.
MOST_BYTES = 3_500_000
_CAPS = (12, 8, 5, 3, 2, 1)
# Where even one whole prompt a cell is too much: text kept around every answer and at the end.
_AROUND, _TAIL = 400, 600
_GAP = " [...] "


def answers(content: Content) -> Markup | None:
    """None where there are no predictions."""
    if not content.predictions:
        return None
    data, cap, cut = _fitting(content)
    text = (
        f"The first {cap} {'prompt' if cap == 1 else 'prompts'} of every cell, by index, not "
        "chosen by outcome; all answers stand in predictions.jsonl."
    )
    if cut:
        text += " Prompts are shortened to what surrounds the answers and their end."
    return section(
        "answers",
        "Answers, one by one",
        el("div", id="answers-view", class_="needs-script"),
        el("noscript", note("This part needs scripts; the answers stand in predictions.jsonl.")),
        el("p", text, class_="note needs-script"),
        el("script", _embeddable(data), type="application/json", id="answers-data"),
    )


def _fitting(content: Content) -> tuple[str, int, bool]:
    """The most answers that fit: JSON text, answers a cell, whether prompts had to be cut."""
    for cut in (False, True):
        for cap in _CAPS:
            text = _text(content, cap, cut)
            if len(text.encode()) <= MOST_BYTES:
                return text, cap, cut
    return text, cap, cut


def _text(content: Content, cap: int, cut: bool) -> str:
    return json.dumps(_data(content, cap, cut), ensure_ascii=False, separators=(",", ":"))


def _data(content: Content, cap: int, cut: bool) -> dict[str, Any]:
    """Prompts are stored once and referred to by position: settings share them.

    `cells` holds [group, setting, task, backbone, answers]; an answer is
    [prompt, index, seed text, prediction, strict].
    """
    prompts: dict[tuple[str, tuple[str, ...]], int] = {}
    groups, cells = [], []
    for g, group in enumerate(content.groups):
        settings = list(group.settings)
        groups.append(
            {
                "label": group_label(group),
                "settings": [group.setting_name(s) for s in settings],
                "first": _first(settings),
                "tasks": [
                    [task, labels.task(task), labels.task_note(task)] for task in group.tasks
                ],
                "backbones": list(group.backbones),
            }
        )
        for (backbone, setting, task), cell in group.cells.items():
            found = []
            for result in cell.results:
                prediction = content.predictions.get(result.key)
                if prediction is None:
                    continue
                seed = _seed(result.train_seed, result.selector_seed, len(cell.results) > 1)
                for answer in sorted(prediction.answers, key=lambda a: a.index)[:cap]:
                    place = prompts.setdefault((answer.prompt, answer.gold), len(prompts))
                    found.append(
                        [place, answer.index, seed, answer.prediction, round(answer.strict, 4)]
                    )
            where = [g, settings.index(setting), group.tasks.index(task)]
            if found:
                cells.append([*where, group.backbones.index(backbone), found])
    texts = [[_shortened(text, gold) if cut else text, list(gold)] for text, gold in prompts]
    return {"groups": groups, "prompts": texts, "cells": cells}


def _first(settings: Sequence[Setting]) -> int:
    """Where the browser opens: the first sparse method's smallest budget, dense if alone."""
    first = next((s for s in settings if not s.is_dense), settings[0])
    alike = [
        s
        for s in settings
        if (s.method, s.block_size, s.selector) == (first.method, first.block_size, first.selector)
    ]
    return settings.index(min(alike, key=lambda s: s.fraction))


def _seed(train_seed: int | None, selector_seed: int | None, several: bool) -> str:
    if not several:
        return ""
    parts = [f"seed {train_seed}"] if train_seed is not None else []
    return ", ".join(
        [*parts, *([f"selector {selector_seed}"] if selector_seed is not None else [])]
    )


def _shortened(text: str, gold: Iterable[str]) -> str:
    spans = [(max(0, len(text) - _TAIL), len(text))]
    for answer in gold:
        at = text.find(answer)
        if at >= 0:
            spans.append((max(0, at - _AROUND), min(len(text), at + len(answer) + _AROUND)))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    body = _GAP.join(text[start:end] for start, end in merged)
    return body if merged[0][0] == 0 else _GAP.lstrip() + body


def _embeddable(text: str) -> Markup:
    """JSON that cannot end its script element early."""
    return Markup(text.replace("<", "\\u003c"))
