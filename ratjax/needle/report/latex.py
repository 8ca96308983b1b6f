"""tables.tex: the report's tables as LaTeX, to be copied or put in with \\input."""

import re
from collections.abc import Sequence

from ratjax.needle.report import labels
from ratjax.needle.report.content import Content
from ratjax.needle.report.plain import PLUS_MINUS, PlainTable, Text, plain_tables
from ratjax.needle.report.summary import group_label

_HEADER = r"""% Tables of needle evaluations. In the preamble: \usepackage{booktabs,graphicx}
% A table is no wider than the text: \resizebox shrinks it.
"""

_SPELLED = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    labels.MINUS: r"$-$",
    labels.TIMES: r"$\times$",
    PLUS_MINUS: r"$\pm$",
    labels.DASH: "--",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}


def latex(content: Content) -> str:
    """The document: a `table` environment for every table of every group."""
    parts = [_HEADER]
    for number, (group, comparisons) in enumerate(
        zip(content.groups, content.comparisons, strict=True)
    ):
        prefix = f"{group_label(group)}: " if len(content.groups) > 1 else ""
        for table in plain_tables(content, group, comparisons):
            label = table.key if len(content.groups) == 1 else f"{table.key}-{number + 1}"
            parts.append(_table(table, prefix, label))
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text for LaTeX: its special characters, and signs that its fonts lack, spelled out."""
    return "".join(_SPELLED.get(character, character) for character in text)


def _table(table: PlainTable, prefix: str, label: str) -> str:
    columns = "l" * table.left + "r" * (len(table.columns) - table.left)
    note = f" {table.note}" if table.note else ""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(f'{prefix}{table.title}.{note}')}}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line([escape(column) for column in table.columns]),
        r"\midrule",
        *_body(table),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _body(table: PlainTable) -> list[str]:
    """The rows, with a little room where the method changes."""
    methods = [re.split("[ ,]", row[0].text)[0] for row in table.rows]
    lines = []
    for place, row in enumerate(table.rows):
        if place and methods[place] != methods[place - 1]:
            lines.append(r"\addlinespace")
        lines.append(_line([_cell(cell) for cell in row]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Text) -> str:
    text = escape(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    return text + ("$^{*}$" if cell.star else "") + escape(cell.tail)
