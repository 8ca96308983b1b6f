"""Pieces that several sections share."""

from collections.abc import Sequence

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
