"""The paper's tables: every setting and backbone, task by task, with the paper's scores beside."""

from ratjax.needle.report import labels, paper
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.markup import Child, Markup, el, join
from ratjax.needle.report.sections.common import (
    group_heading,
    note,
    scrolling,
    section,
    sortable_head,
)
from ratjax.needle.report.tables import TableCell, TableRow, paper_tables, table_rows


def tables(content: Content) -> Markup:
    parts: list[Child] = []
    repeated: list[int] = []
    for group in content.groups:
        rows = table_rows(content, group)
        repeated += paper_tables(content, rows)
        parts += [group_heading(content, group), _table(group, rows)]
    title = "Scores task by task"
    if repeated:
        names = labels.joined([str(number) for number in sorted(set(repeated))])
        title = f"The paper's Table{'s' if len(set(repeated)) > 1 else ''} {names}, ours beside"
    return section("tables", title, *parts, note(_text(content, bool(repeated))))


def _table(group: Group, rows: list[TableRow]) -> Markup:
    titles: list[Child] = [
        el("abbr", labels.task(task), title=f"{task}: {labels.task_note(task)}")
        for task in group.tasks
    ]
    head = sortable_head(["Setting", "Backbone"], [*titles, "Mean"])
    body = [_row(group, place, row) for place, row in enumerate(rows)]
    table = el("table", head, el("tbody", *body), class_="sortable tasks")
    return scrolling(table, "Scores task by task")


def _row(group: Group, place: int, row: TableRow) -> Markup:
    return el(
        "tr",
        el("th", group.setting_name(row.setting), scope="row", data_value=place),
        el("td", row.backbone),
        *(_cell(cell) for cell in (*row.cells, row.mean)),
        class_="reference" if row.setting.is_dense else None,
    )


def _cell(cell: TableCell) -> Markup:
    if cell.score is None:
        return el("td", labels.DASH, class_="num")
    score = cell.score
    ends = labels.interval(score.low, score.high)
    what = "one standard deviation over seeds" if cell.spread else "95 % interval"
    shown: list[Child] = [el("b", labels.number(score.mean))]
    if cell.spread:
        shown.append(el("small", f" \N{PLUS-MINUS SIGN} {labels.number(score.high - score.mean)}"))
    beside = None
    if cell.paper is not None:
        std = f" \N{PLUS-MINUS SIGN} {cell.paper.std:.1f}" if cell.paper.std is not None else ""
        difference = el("strong" if cell.apart else "span", labels.signed(cell.difference))
        theirs = join([labels.number(cell.paper.score) + std, " ", difference])
        beside = el("small", theirs, class_="beside")
    return el(
        "td",
        join(shown),
        beside,
        class_="num",
        title=f"{what} {ends}",
        data_value=f"{score.mean:.4f}",
    )


def _text(content: Content, repeated: bool) -> str:
    text = (
        "Strict scores in percent; the tooltip has the 95 % interval over prompts, or where there "
        "are several seeds the standard deviation, which also stands beside the mean."
    )
    if repeated:
        text += (
            f" Below a score: the paper's ({paper.source()}) and ours minus it, bold where the "
            "paper's lies outside our interval."
        )
    elif content.reference is None:
        text += " The paper's tables are of other models; its scores stand in the table of cells."
    return text
