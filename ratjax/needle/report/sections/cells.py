"""Every cell in one table, to be sorted and filtered."""

from collections.abc import Sequence

from ratjax.needle.report import labels, paper
from ratjax.needle.report.compare import Comparison, score_interval
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Cell, Group
from ratjax.needle.report.markup import Child, Markup, el
from ratjax.needle.report.sections.common import (
    filters,
    mark,
    note,
    number_cell,
    scrolling,
    section,
    sortable_head,
)
from ratjax.needle.report.summary import group_label


def cells(content: Content) -> Markup:
    rows = [
        _row(content, group, cell, comparisons)
        for group, comparisons in zip(content.groups, content.comparisons, strict=True)
        for setting in group.settings
        for task in group.tasks
        for backbone in group.backbones
        if (cell := group.cell(backbone, setting, task)) is not None
    ]
    columns = ["Context"] if len(content.groups) > 1 else []
    columns += ["Method", "Budget", "Task", "Backbone"]
    numbers = ["Strict", "Interval", "RULER", "Read", "Keeps", "Prompts", *_paper_columns(content)]
    table = el(
        "table",
        sortable_head(columns, numbers),
        el("tbody", *rows),
        class_="sortable cells",
        id="cells-table",
    )
    return section(
        "cells",
        "All cells",
        filters(content),
        scrolling(table, "All cells"),
        el("p", f"{len(rows)} rows", role="status", class_="note count"),
        _explanation(content),
    )


def _row(content: Content, group: Group, cell: Cell, comparisons: Sequence[Comparison]) -> Markup:
    setting = cell.setting
    strict = score_interval(cell, content.predictions)
    first = [c for c in comparisons if (c.baseline, c.other) == (group.backbones[0], cell.backbone)]
    tested = (comparison.cells.get((setting, cell.task)) for comparison in first)
    star = el("b", "".join(mark(d) for d in tested if d is not None), class_="star")
    replicates = f" {labels.TIMES} {len(cell.results)} seeds" if len(cell.results) > 1 else ""
    parts: list[Child] = []
    if len(content.groups) > 1:
        parts.append(el("td", group_label(group), data_value=group.context_length))
    parts += [
        el("td", group.method_name(setting), class_="method"),
        el("td", labels.budget(setting.budget), data_value=setting.fraction),
        el("td", labels.task(cell.task), title=cell.task),
        el("td", cell.backbone),
        number_cell(labels.number(strict.mean), star),
        number_cell(labels.interval(strict.low, strict.high), class_="quiet"),
        number_cell(labels.number(cell.ruler)),
        number_cell(labels.percent(cell.kv_read_fraction)),
        el("td", labels.kept(setting), data_value=setting.k or 0, class_="num quiet"),
        number_cell(labels.count(cell.samples) + replicates),
        *_paper_cells(content, cell),
    ]
    return el(
        "tr",
        *parts,
        data_backbone=cell.backbone,
        data_method=setting.method,
        data_task=cell.task,
    )


def _shown_checkpoints(content: Content) -> list[str]:
    return [content.reference] if content.reference else list(paper.CHECKPOINTS)


def _paper_columns(content: Content) -> list[str]:
    names = [f"Paper, {paper.CHECKPOINTS[key]}" for key in _shown_checkpoints(content)]
    return [*names, "minus paper"] if content.reference else names


def _paper_cells(content: Content, cell: Cell) -> list[Markup]:
    found = [
        paper.find(key, cell.backbone, cell.setting, cell.task)
        for key in _shown_checkpoints(content)
    ]
    parts = []
    for score in found:
        if score is None:
            parts.append(number_cell("", class_="quiet"))
            continue
        other_block = score.block_size != cell.setting.block_size and score.block_size is not None
        parts.append(
            number_cell(
                labels.number(score.score),
                f" \N{PLUS-MINUS SIGN} {score.std:.1f}" if score.std is not None else None,
                el("small", f" B={score.block_size}") if other_block else None,
                class_="quiet",
            )
        )
    if content.reference:
        score = found[0]
        same = score is not None and score.block_size == cell.setting.block_size
        parts.append(
            number_cell(labels.signed(cell.strict.mean - score.score) if score and same else "")
        )
    return parts


def _explanation(content: Content) -> Markup:
    text = (
        "Strict: share of the answers that stand, whole and alone, between the commas of the "
        "prediction. RULER: share of the answers found anywhere in it. Read: measured share of the "
        "keys and values that were read. "
    )
    if any(group.has_replicates for group in content.groups):
        text += (
            "Interval: 95 % over prompts; where there are several seeds, with seeds and prompts as "
            "random effects. "
        )
    if any(content.comparisons):
        text += f"* differs significantly from {content.backbones[0]} in the same setting. "
    if content.reference is None:
        text += (
            "The paper's columns are other models at 4096 tokens, at the same method and budget; "
            "B is its block size where ours differs."
        )
    return note(text)
