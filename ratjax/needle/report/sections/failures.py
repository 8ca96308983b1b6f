"""What went wrong: prompts that were not fully answered, with what was asked and said."""

from ratjax.needle.report import labels
from ratjax.needle.report.content import KEPT_FAILURES, Content
from ratjax.needle.report.grid import Cell, Group
from ratjax.needle.report.markup import Child, Markup, el, join
from ratjax.needle.report.predictions import Answer
from ratjax.needle.report.sections.common import filters, note, scrolling, section, sortable_head
from ratjax.needle.report.summary import group_label

# Rows of the table; a cell has fewer where there are many cells.
_MOST_ROWS = 400
# Characters of a prompt's end: the question and a little before it.
_TAIL = 180
_LONGEST = 200
_CUT = "\N{HORIZONTAL ELLIPSIS}"
_SIGN = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}


def failures(content: Content) -> Markup | None:
    """None where there are no predictions, or nothing went wrong."""
    listed = [entry for entry in _cells(content) if entry[2]]
    if not listed:
        return None
    each = max(1, _MOST_ROWS // len(listed))
    rows = [
        _row(content, group, cell, answer)
        for group, cell, wrong in listed
        for answer in wrong[:each]
    ]
    columns = ["Context"] if len(content.groups) > 1 else []
    columns += ["Setting", "Task", "Backbone", "Prompt"]
    head = sortable_head([*columns, "End of the prompt", "Prediction", "Answer"], [])
    table = el("table", head, el("tbody", *rows), class_="sortable failures", id="failures-table")
    count = sum(
        strict < 1 for found in content.predictions.values() for strict in found.strict.values()
    )
    text = (
        f"{labels.count(count)} predictions were not fully right; here {_few(each)} of every cell, "
        "by prompt. All of them stand in predictions.jsonl, and the "
        "browser of answers below shows right and wrong ones with their whole prompts."
    )
    return section(
        "failures",
        "Where answers were wrong",
        filters(content),
        scrolling(table, "Where answers were wrong"),
        el("p", f"{len(rows)} rows", role="status", class_="note count"),
        note(text),
    )


def _few(each: int) -> str:
    return "is the first" if each == 1 else f"are the first {min(each, KEPT_FAILURES)}"


def _cells(content: Content) -> list[tuple[Group, Cell, list[Answer]]]:
    """Every cell with its kept failures, those of its first seed."""
    found = []
    for group in content.groups:
        for setting in group.settings:
            for task in group.tasks:
                for backbone in group.backbones:
                    cell = group.cell(backbone, setting, task)
                    if cell is None:
                        continue
                    kept = content.predictions.get(cell.results[0].key)
                    found.append((group, cell, kept.failures if kept is not None else []))
    return found


def _row(content: Content, group: Group, cell: Cell, answer: Answer) -> Markup:
    parts: list[Child] = []
    if len(content.groups) > 1:
        parts.append(el("td", group_label(group), data_value=group.context_length))
    parts += [
        el("td", group.setting_name(cell.setting)),
        el("td", labels.task(cell.task), title=cell.task),
        el("td", cell.backbone),
        el("td", answer.index, class_="num"),
        el("td", el("code", _tail(answer.prompt))),
        el("td", el("code", _short(answer.prediction) or "(nothing)")),
        el("td", _gold(answer)),
    ]
    return el(
        "tr",
        *parts,
        data_backbone=cell.backbone,
        data_method=cell.setting.method,
        data_task=cell.task,
    )


def _tail(prompt: str) -> str:
    """The prompt's end on one line, from a whole word on."""
    if len(prompt) > _TAIL:
        prompt = f"{_CUT} {prompt[-_TAIL:].partition(' ')[2]}"
    return " ".join(prompt.split())


def _short(prediction: str) -> str:
    return prediction if len(prediction) <= _LONGEST else f"{prediction[:_LONGEST]}{_CUT}"


def _gold(answer: Answer) -> Markup:
    """The right answers, each with whether it was said."""
    said = {item.strip() for item in answer.prediction.split(",")}
    return join(
        el("code", _SIGN[gold in said], " ", gold, class_="yes" if gold in said else "no")
        for gold in answer.gold
    )
