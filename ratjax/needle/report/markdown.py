"""report.md: the same findings and tables as plain Markdown."""

from collections.abc import Sequence

from ratjax.needle.report import labels
from ratjax.needle.report.compare import ALPHA, Comparison, Difference, dense_gap
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.page import subtitle, title
from ratjax.needle.report.records import Setting
from ratjax.needle.report.summary import caveats, findings, group_label, resolution, test_name


def markdown(content: Content, figures: Sequence[str] = ()) -> str:
    """The document.

    Args:
        figures: names of image files beside it.
    """
    parts = [
        f"# {title(content)}",
        subtitle(content),
        *findings(content),
        *[f"> {text}" for text in [" ".join(caveats(content))] if text],
        *[f"![Score against budget]({name})" for name in figures],
    ]
    for group, comparisons in zip(content.groups, content.comparisons, strict=True):
        parts += [f"## {group_label(group)}", "### Mean score", _means(group, comparisons)]
        parts += ["### Strict score by task", _tasks(group)]
        for comparison in comparisons:
            parts += [
                f"### {comparison.other} minus {comparison.baseline}, by task",
                _differences(comparison),
                f"\\* significant at {100 * ALPHA:g} %, the others may be chance: "
                f"{test_name(comparison)}, Holm's correction over the tasks. "
                + resolution(comparison),
            ]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are text."""
    rule = [":--" if i < left else "--:" for i in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _means(group: Group, comparisons: Sequence[Comparison]) -> str:
    columns = ["Method", "Budget", *group.backbones]
    for comparison in comparisons:
        columns += [f"{comparison.other} minus {comparison.baseline} [95 %]", "net of dense [95 %]"]
    rows = []
    for setting in group.settings:
        row = [group.method_name(setting), labels.budget(setting.budget)]
        row += [_score(group, backbone, setting) for backbone in group.backbones]
        for comparison in comparisons:
            row += _paired(comparison.averages.get(setting))
        rows.append(row)
    return _table(columns, rows, left=2)


def _score(group: Group, backbone: str, setting: Setting) -> str:
    score = group.average(backbone, setting)
    if score is None:
        found = len(group.of_setting(backbone, setting))
        return f"{found} of {len(group.tasks)} tasks" if found else labels.DASH
    gap = None if setting.is_dense else dense_gap(group, backbone, setting)
    return labels.number(score.mean) + (f" ({labels.signed(gap)})" if gap is not None else "")


def _paired(difference: Difference | None) -> list[str]:
    if difference is None:
        return [labels.DASH, ""]
    texts = []
    for points, estimate in (
        (difference.points, difference.interval),
        (None, difference.net_of_dense),
    ):
        if estimate is None:
            texts.append("" if points is None else labels.signed(points))
            continue
        text = labels.signed(estimate.mean if points is None else points)
        shown = f"**{text}**" if estimate.excludes_zero else text
        texts.append(f"{shown} {labels.interval(estimate.low, estimate.high)}")
    return texts


def _tasks(group: Group) -> str:
    rows = []
    for setting in group.settings:
        for backbone in group.backbones:
            cells = [group.cell(backbone, setting, task) for task in group.tasks]
            if any(cells):
                scores = [labels.number(cell.strict.mean if cell else None) for cell in cells]
                rows.append([group.setting_name(setting), backbone, *scores])
    return _table(["Setting", "Backbone", *map(labels.task, group.tasks)], rows, left=2)


def _differences(comparison: Comparison) -> str:
    group = comparison.group
    rows = []
    for setting in group.settings:
        found = [comparison.cells.get((setting, task)) for task in group.tasks]
        if any(found):
            rows.append([group.setting_name(setting), *map(_marked, found)])
    return _table(["Setting", *map(labels.task, group.tasks)], rows, left=1)


def _marked(difference: Difference | None) -> str:
    if difference is None:
        return labels.DASH
    text = labels.signed(difference.points)
    return f"**{text}**\\*" if difference.significant else text
