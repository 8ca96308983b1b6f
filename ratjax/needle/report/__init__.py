"""The report of needle evaluations: one page to look at, and its numbers for other programs.

`build` reads run folders and writes a folder. The way through: `load` and `predictions` read,
`grid` orders rows into cells that can be compared, `compare` pairs backbones, `content` holds it
all; `summary` puts it in words, `sections` and `charts` draw it, `page`, `markdown` and `figures`
compose the documents, `write` puts them in place.
"""

from ratjax.needle.report.write import build

__all__ = ["build"]
