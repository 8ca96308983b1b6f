"""Fills the study's tables, numbers and figures in from its stored runs.

  python -m docs.study.tables

In README.md beside this file and in the project's, what stands between `<!-- begin:NAME -->` and
`<!-- end:NAME -->` (docs/study/blocks.py has the names) is replaced; figures are written beside the
first.
"""

import argparse
import pathlib
import re
import sys

from docs.study import figures, stored
from docs.study.blocks import BLOCKS
from docs.study.study import Study
from ratjax.errors import InputError, nearest
from ratjax.files import write_file

_BLOCK = re.compile(r"<!-- begin:(\w+) -->(.*?)<!-- end:\1 -->", re.DOTALL)


def fill(text: str, study: Study) -> str:
    """The text with every block made anew.

    Raises:
      InputError: a block of an unknown name.
    """

    def made(match: re.Match[str]) -> str:
        name, before = match[1], match[2]
        known = {**BLOCKS, **figures.FIGURES}
        if name not in known:
            raise InputError(f"begin:{name}: no such block; {nearest(name, known)}")
        # Tables stand in lines of their own, numbers within a sentence.
        gap = "\n\n" if before.startswith("\n") else ""
        return f"<!-- begin:{name} -->{gap}{known[name](study)}{gap}<!-- end:{name} -->"

    return _BLOCK.sub(made, text)


def main(arguments: list[str] | None = None) -> int:
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", default=stored.FOLDER, type=pathlib.Path)
    texts = [here / "README.md", here.parents[1] / "README.md"]
    parser.add_argument("--text", default=texts, nargs="+", type=pathlib.Path)
    given = parser.parse_args(arguments)
    try:
        study = Study(tuple(stored.read_all(given.results)))
        filled = {path: fill(path.read_text("utf-8"), study) for path in given.text}
        drawn = figures.draw(study, given.text[0].parent)
        for path, text in filled.items():
            write_file(path, text)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.text[0]}: {len(study.runs)} runs; figures: {', '.join(drawn) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
