"""Hit rates in the report: curves, what a hit is worth, and where there are none."""

import json
import re
import shutil

import pytest

from ratjax.errors import InputError
from ratjax.needle import report
from ratjax.needle.report.content import collect
from ratjax.needle.report.hits import Worth, load_hits, together
from ratjax.needle.report.load import load_runs
from ratjax.needle.report.sections.hits import hits
from tests.needle_report import synthetic


def rows(folder):
    """Made-up rates for the sparse rows of a run."""
    results = json.loads((folder / "results.json").read_text())["results"]
    for place, result in enumerate(r for r in results if r["method"] != "dense"):
        top = [[max(0.0, 0.99 - 0.01 * rank - 0.002 * place), 0, rank] for rank in range(50)]
        yield {
            **result,
            "top": top,
            "rates": [[rate for rate, *_ in top]],
            "given_hit": {"prompts": 2, "score_strict": 100.0},
            "given_miss": {"prompts": 1, "score_strict": 50.0},
        }


@pytest.fixture
def run(tmp_path):
    chosen = synthetic.settings(methods=("quest", "snapkv"), budgets=("1/4", "1/8"))
    folder = synthetic.write_run(
        tmp_path / "run", tasks=synthetic.TASKS[:2], samples=3, chosen=chosen, metrics=False
    )
    (folder / "hits.json").write_text(json.dumps({"hits": list(rows(folder))}))
    return folder


def test_a_curve_a_backbone_and_budget(run):
    content = collect([run])
    assert len(content.hits) == 2 * 2 * 2 * 2
    text = str(hits(content))
    assert text.count("<figure") == 2 * 2
    assert text.count("<polyline") == 2 * 2 * 2 * 2
    assert text.count("<tr>") == 1 + 2 * 2 * 2
    # A third of the prompts is missed; the best head's rate is that of the first in every list.
    assert "33.3" in text and "100.0" in text and "50.0" in text


def test_context_lengths_stand_apart(run, tmp_path):
    other = tmp_path / "longer"
    shutil.copytree(run, other)
    for file in (f for f in other.iterdir() if f.suffix in (".json", ".jsonl")):
        file.write_text(re.sub('"context_length": ?256', '"context_length": 512', file.read_text()))
    alone, both = (str(hits(collect(folders))) for folders in ([run], [run, other]))
    assert both.count("<table") == 2 * alone.count("<table")
    assert "tokens</h3>" in both and "tokens</h3>" not in alone


def test_the_report_passes_them_on(run, tmp_path):
    page = report.build([run], tmp_path / "out")
    assert 'id="hits"' in page.read_text() and 'href="#hits"' in page.read_text()
    again = report.build([page.parent], tmp_path / "again")
    assert load_hits(load_runs([again.parent])) == load_hits(load_runs([run]))
    (run / "hits.json").unlink()
    report.build([run], tmp_path / "out")
    assert not (tmp_path / "out" / "hits.json").exists()
    assert 'id="hits"' not in page.read_text()


def test_a_broken_file_is_one_line(run):
    (run / "hits.json").write_text('{"hits": [{"method": "quest"}]}')
    with pytest.raises(InputError, match=r"hits.json: not as an evaluation writes it"):
        load_hits(load_runs([run]))


def test_tasks_together_count_prompts():
    assert together([Worth(3, 100.0), Worth(1, 0.0), Worth(0, None)]) == Worth(4, 75.0)
    assert together([Worth(0, None)]) == Worth(0, None)
