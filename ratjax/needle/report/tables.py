"""The paper's tables with our numbers: a row a setting and backbone, a column a task.

What the cells say is decided here once; the page, the Markdown and the LaTeX only spell it.
"""

from dataclasses import dataclass

from ratjax.needle.report import paper
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.paper import PaperScore
from ratjax.needle.report.records import Setting
from ratjax.needle.statistics import Estimate


@dataclass(frozen=True)
class TableCell:
    """One score beside the paper's.

    Attributes:
        score: strict, in percent; None where it was not evaluated.
        spread: whether the score's ends are one standard deviation over seeds to either side, not
            a 95 % interval.
        paper: the paper's, of the same method, block size, budget and selector; None where it has
            none, or where the runs repeat no pair of the paper.
    """

    score: Estimate | None
    spread: bool = False
    paper: PaperScore | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.score is None or self.paper is None:
            return None
        return self.score.mean - self.paper.score

    @property
    def apart(self) -> bool:
        """Whether the paper's score lies outside the ends of ours."""
        return (
            self.score is not None
            and self.paper is not None
            and not self.score.low <= self.paper.score <= self.score.high
        )


@dataclass(frozen=True)
class TableRow:
    setting: Setting
    backbone: str
    cells: tuple[TableCell, ...]
    mean: TableCell


def table_rows(content: Content, group: Group) -> list[TableRow]:
    """All settings and backbones of a group that were evaluated on any task."""
    return [
        _row(content, group, setting, backbone)
        for setting in group.settings
        for backbone in group.backbones
        if group.of_setting(backbone, setting)
    ]


def _row(content: Content, group: Group, setting: Setting, backbone: str) -> TableRow:
    cells = []
    for task in group.tasks:
        cell = group.cell(backbone, setting, task)
        own = None if cell is None else cell.strict
        several = cell is not None and len(cell.results) > 1
        cells.append(TableCell(own, several, _paper(content, group, backbone, setting, task)))
    average = group.average(backbone, setting)
    # Means over other tasks than the paper's could not be compared with it.
    same = set(group.tasks) == paper.tasks()
    theirs = _paper(content, group, backbone, setting, None) if same else None
    several = any(cell.spread for cell in cells)
    return TableRow(setting, backbone, tuple(cells), TableCell(average, several, theirs))


def _paper(
    content: Content, group: Group, backbone: str, setting: Setting, task: str | None
) -> PaperScore | None:
    if content.reference is None or group.context_length != paper.CONTEXT_LENGTH:
        return None
    found = paper.find(content.reference, backbone, setting, task)
    return found if found is not None and found.block_size == setting.block_size else None


def paper_tables(content: Content, rows: list[TableRow]) -> list[int]:
    """Which of the paper's tables the rows repeat: 3 (RAT+), 4 (OLMo2), 5 (random selectors)."""
    selectors = {row.setting.selector for row in rows if row.mean.paper or row.cells[0].paper}
    own = {"ratplus_7b_100bt": 3, "olmo2_7b": 4}
    tables = [own[content.reference]] if content.reference and "original" in selectors else []
    return [*tables, *([5] if "random" in selectors else [])]
