"""Pieces that several sections share."""

from collections.abc import Sequence

from ratjax.needle.report import labels
from ratjax.needle.report.compare import Difference
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.markup import Child, Markup, el
from ratjax.needle.report.summary import group_label


def section(name: str, title: str, *children: Child) -> Markup:
    heading = el("h2", title, id=f"{name}-title")
    return el("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def note(*children: Child) -> Markup:
    return el("p", *children, class_="note")


def scrolling(table: Markup, label: str) -> Markup:
    """A table that scrolls by itself where the window is narrow; focusable, so that arrow keys
    scroll it too."""
    return el("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")


def head(columns: Sequence[Child]) -> Markup:
    return el("thead", el("tr", *(el("th", column, scope="col") for column in columns)))


def sortable_head(texts: Sequence[Child], numbers: Sequence[Child]) -> Markup:
    """The head of a `sortable` table: columns of text, then of numbers.

    Without scripts plain headings; the script turns them into buttons that sort.
    """
    headings = [el("th", column, scope="col") for column in texts]
    headings += [el("th", column, scope="col", class_="num") for column in numbers]
    return el("thead", el("tr", *headings))


def filters(content: Content) -> Markup:
    """Selects that filter the section's sortable table; hidden until the script takes them on.

    The table's rows state `data-backbone`, `data-method` and `data-task`.
    """

    def select(name: str, title: str, options: Sequence[tuple[str, str]]) -> Markup:
        entries = [el("option", "all", value=""), *(el("option", t, value=v) for v, t in options)]
        return el("label", title, " ", el("select", *entries, data_filter=name))

    methods = list(dict.fromkeys(s.method for g in content.groups for s in g.settings))
    tasks = sorted({r.task for r in content.results}, key=labels.task_order)
    return el(
        "div",
        select("backbone", "Backbone", [(b, b) for b in content.backbones]),
        select("method", "Method", [(m, labels.method(m)) for m in methods]),
        select("task", "Task", [(t, labels.task(t)) for t in tasks]),
        class_="controls needs-script",
    )


def number_cell(*children: Child, class_: str = "") -> Markup:
    return el("td", *children, class_=f"num {class_}".strip())


def mark(difference: Difference) -> str:
    """The sign of a significant difference."""
    return "*" if difference.significant else ""


def group_heading(content: Content, group: Group) -> Markup | None:
    """A heading only where there is more than one group."""
    return el("h3", group_label(group)) if len(content.groups) > 1 else None


def positions(content: Content) -> dict[str, int]:
    return {backbone: place for place, backbone in enumerate(content.backbones)}
