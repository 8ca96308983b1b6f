"""report.md: the same findings and tables as plain Markdown."""

from collections.abc import Sequence

from ratjax.needle.report.content import Content
from ratjax.needle.report.page import subtitle, title
from ratjax.needle.report.plain import PlainTable, Text, plain_tables
from ratjax.needle.report.summary import caveats, findings, group_label


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
        parts.append(f"## {group_label(group)}")
        for table in plain_tables(content, group, comparisons):
            parts += [f"### {table.title}", pipe_table(table)]
            parts += [_escape(table.note)] if table.note else []
    return "\n\n".join(parts) + "\n"


def pipe_table(table: PlainTable) -> str:
    """One table as a Markdown table between pipes."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.columns))]
    lines = [table.columns, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: Text) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    star = "\\*" if cell.star else ""
    return f"{text}{star}{cell.tail}".replace("|", "\\|").replace("\n", " ")


def _escape(text: str) -> str:
    return text.replace("*", "\\*")
