"""The paper's tables with ours: cells, selectors, Markdown and LaTeX, and the list of failures."""

import re

import numpy as np
import pytest

from ratjax.needle.report import labels
from ratjax.needle.report.content import collect
from ratjax.needle.report.latex import escape, latex
from ratjax.needle.report.markdown import markdown
from ratjax.needle.report.paper import PaperScore
from ratjax.needle.report.sections.failures import failures
from ratjax.needle.report.selectors import selector_rows
from ratjax.needle.report.tables import TableCell, paper_tables, table_rows
from ratjax.needle.statistics import Estimate
from tests.needle_report import synthetic


def _rows(content):
    (group,) = content.groups
    return group, table_rows(content, group)


def test_every_setting_and_backbone_is_a_row(paper_content):
    group, rows = _rows(paper_content)
    # Dense, three methods at three budgets, random ones and four changed ones at one.
    assert len(rows) == 2 * (1 + 9 + 3 + 4)
    assert [len(row.cells) for row in rows] == [8] * len(rows)
    for row in rows:
        for task, cell in zip(group.tasks, row.cells, strict=True):
            assert cell.score == group.cell(row.backbone, row.setting, task).strict
        assert row.mean.score == group.average(row.backbone, row.setting)


def test_the_papers_score_stands_beside_the_same_cell(paper_content):
    _, rows = _rows(paper_content)
    named = {(r.setting.method, r.setting.budget, r.setting.selector, r.backbone): r for r in rows}
    quest = named["quest", "1/16", "original", "memory"]
    mk2 = quest.cells[4]
    assert mk2.paper.score == 98.6
    assert mk2.difference == pytest.approx(mk2.score.mean - 98.6)
    random = named["quest", "1/4", "random", "memory"].cells[0]
    assert (random.paper.score, random.paper.std, random.spread) == (83.8, 1.92, True)
    assert named["dense", "1", "original", "memory"].cells[0].paper is None
    assert named["quest", "1/4", "original_golden_in", "memory"].mean.paper is None
    assert paper_tables(paper_content, rows) == [4, 5]


def test_without_a_repeated_pair_nothing_stands_beside(content):
    _, rows = _rows(content)
    assert all(cell.paper is None for row in rows for cell in (*row.cells, row.mean))
    assert paper_tables(content, rows) == []


def test_apart_means_outside_our_ends():
    ours = Estimate(80.0, 75.0, 86.0)
    assert TableCell(ours, False, PaperScore(86.1, None, 64)).apart
    assert not TableCell(ours, False, PaperScore(86.0, None, 64)).apart
    assert TableCell(None, False, PaperScore(86.0, None, 64)).difference is None


def test_selectors_are_paired_with_the_own_one(paper_content):
    group, rows = _rows(paper_content)
    found = selector_rows(paper_content, group)
    # Quest has six selectors at a quarter, the others two; smaller budgets have one.
    assert len(found) == 2 * (6 + 2 + 2)
    means = {(row.setting, row.backbone): row.mean.score.mean for row in rows}
    for row in found:
        own = next(
            s
            for s in group.settings
            if (s.method, s.budget, s.selector) == (row.setting.method, "1/4", "original")
        )
        if row.setting == own:
            assert row.minus_own is None and row.seeds == 1
            continue
        difference = means[row.setting, row.backbone] - means[own, row.backbone]
        # Stated scores have two decimals.
        assert row.minus_own.mean == pytest.approx(difference, abs=0.01)
        assert row.minus_own.low < row.minus_own.mean < row.minus_own.high
        assert row.seeds == (5 if row.setting.selector == "random" else 1)


def test_spread_is_the_standard_deviation_over_five_seeds(paper_content):
    group, _ = _rows(paper_content)
    row = next(r for r in selector_rows(paper_content, group) if r.seeds == 5)
    scores = {}
    for result in paper_content.results:
        if (result.setting, result.backbone) == (row.setting, row.backbone):
            scores.setdefault(result.selector_seed, []).append(result.score_strict)
    means = [np.mean(found) for found in scores.values()]
    assert len(means) == 5
    assert row.mean.score.high - row.mean.score.mean == pytest.approx(np.std(means, ddof=1))


def test_selector_names():
    names = {
        "original": "own selector",
        "random": "random selector",
        "original_golden_in": "answer forced in",
        "original_select_with_raw": "selecting by raw keys",
        "random_golden_out": "random selector, answer forced out",
        "original_golden_in_attend_to_raw": "answer forced in, attending to raw keys and values",
        "original_new_thing": "new thing",
        "oracle": "oracle selector",
    }
    assert {key: labels.selector_name(key) for key in names} == names
    assert labels.selector_suffix("original") == ""
    assert labels.selector_suffix("random") == ", random selector"


def test_latex_has_every_table_whole(paper_content):
    text = latex(paper_content)
    assert all(ord(character) < 128 for character in text)
    for opening in ("table", "tabular"):
        assert text.count(rf"\begin{{{opening}}}") == text.count(rf"\end{{{opening}}}") == 5
    assert re.findall(r"\\label\{tab:([\w-]+)\}", text) == [
        *("means", "tasks", "differences-memory-attention", "selectors", "cost")
    ]
    for body in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.S):
        columns = len(re.match(r"\\begin\{tabular\}\{([lr]+)\}", body).group(1))
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}
        assert len(lines) > 9
    # The paper's score and ours minus it, as the page has them.
    assert re.search(r"Quest 1/16 & memory & .*\(98\.6, \$-\$\d+\.\d\)", text)
    # Every brace is closed.
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_latex_escapes():
    assert escape(r"a_b & 50 % \x {y} #1 ~^$") == (
        r"a\_b \& 50 \% \textbackslash{}x \{y\} \#1 \textasciitilde{}\textasciicircum{}\$"
    )
    assert escape("\N{MINUS SIGN}1 \N{PLUS-MINUS SIGN} 2 \N{EN DASH}") == r"$-$1 $\pm$ 2 --"


def test_markdown_has_the_same_tables_with_the_papers_numbers(paper_content):
    text = markdown(paper_content)
    found = re.findall(r"^### (.*)$", text, re.M)
    assert found == [
        "Mean score",
        "Strict score by task",
        "memory minus attention, by task",
        "What the selection is worth",
        "Cost beside score",
    ]
    rows = [row for row in text.splitlines() if row.startswith("| Quest 1/16 | memory")]
    (line,) = (row for row in rows if "(98.6" in row)
    assert line.count("|") == 2 + 1 + 9
    random = next(x for x in text.splitlines() if "random selector | memory" in x)
    assert "\N{PLUS-MINUS SIGN}" in random and "(83.8" in random


def test_failures_show_tail_prediction_and_answer(paper_content):
    text = str(failures(paper_content))
    rows = re.findall(r"<tr data-backbone.*?</tr>", text, re.S)
    wrong = {key: found for key, found in paper_content.predictions.items() if found.failures}
    assert rows and all("mentioned in the provided text?" in row for row in rows)
    assert all("\N{BALLOT X}" in row for row in rows)
    first = next(
        found
        for key, found in paper_content.predictions.items()
        if found.failures and "dense" in key
    )
    assert first.failures[0].prediction in text
    # The first ones by index, and none that was right.
    for found in wrong.values():
        indices = sorted(i for i, strict in found.strict.items() if strict < 1)
        assert [answer.index for answer in found.failures] == indices[:3]
    everything = paper_content.predictions.values()
    count = sum(strict < 1 for found in everything for strict in found.strict.values())
    assert f"{labels.count(count)} predictions were not fully right" in text


def test_no_failures_no_section(tmp_path):
    folder = synthetic.write_run(
        tmp_path / "r",
        tasks=synthetic.TASKS[:1],
        chosen=synthetic.settings()[:1],
        samples=1,
        metrics=False,
    )
    content = collect([folder])
    assert {s for found in content.predictions.values() for s in found.strict.values()} == {1.0}
    assert failures(content) is None
