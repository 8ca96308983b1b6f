"""A report is written whole or not at all, and the same twice."""

import json

import pytest

from ratjax.errors import InputError
from ratjax.needle import report
from ratjax.needle.report import write
from tests.needle_report import synthetic


def test_everything_is_there(built, run):
    assert {path.name for path in built.iterdir()} == set(write.OUTPUTS) - {write.HITS}
    assert (built / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (built / "index.html").stat().st_size < 5_000_000
    source = json.loads((run / "results.json").read_text())
    assert json.loads((built / "results.json").read_text()) == source
    for name in ("predictions.jsonl", "prompts.jsonl"):
        assert (built / name).read_bytes() == (run / name).read_bytes()
    timing = json.loads((run / "timing.json").read_text())["timing"]
    assert json.loads((built / "timing.json").read_text())["timing"] == timing


def test_comparisons_are_data_too(built):
    document = json.loads((built / "comparisons.json").read_text())
    rows = document["comparisons"]
    assert len(rows) == 10 * 9
    cells = [row for row in rows if row["task"] is not None]
    assert all(row["p"] <= row["p_holm"] and len(row["interval"]) == 2 for row in cells)
    assert all(row["significant"] == (row["p_holm"] <= document["alpha"]) for row in cells)
    means = [row for row in rows if row["task"] is None and row["method"] != "dense"]
    assert all(len(row["net_of_dense"]) == 3 for row in means)


def test_markdown_has_the_same_tables(built):
    text = (built / "report.md").read_text()
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    # Means, tasks, differences, cost; a head of two lines each.
    assert [len(table.splitlines()) for table in tables] == [12, 22, 12, 22]
    widths = [{line.count("|") for line in table.splitlines()} for table in tables]
    assert [len(width) for width in widths] == [1, 1, 1, 1]
    assert "![Score against budget](curves_mean.png)" in text


def _small(folder, **options):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))
    options = {"tasks": synthetic.TASKS[:2], "samples": 3, "metrics": False, **options}
    return synthetic.write_run(folder, chosen=chosen, **options)


def test_the_same_run_gives_the_same_bytes(tmp_path):
    folder = _small(tmp_path / "run", metrics=True)
    first, second = (report.build([folder], tmp_path / name).parent for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_a_report_of_reports(tmp_path):
    runs = [_small(tmp_path / name, run=name, train_seed=i) for i, name in enumerate("ab")]
    parts = [report.build([run], tmp_path / f"{run.name}-out").parent for run in runs]
    whole = report.build(parts, tmp_path / "out").parent
    assert len(json.loads((whole / "results.json").read_text())["results"]) == 16
    assert len(json.loads((whole / "timing.json").read_text())["timing"]) == 8
    # Two runs, one set of prompts.
    for name, lines in (("predictions.jsonl", 16 * 3), ("prompts.jsonl", 2 * 3)):
        assert len((whole / name).read_text().splitlines()) == lines


def test_an_older_report_is_replaced_and_other_files_stay(tmp_path):
    target = tmp_path / "out"
    report.build([_small(tmp_path / "a")], target)
    assert (target / "predictions.jsonl").exists()
    (target / "notes.txt").write_text("mine")
    report.build([_small(tmp_path / "b", predictions=False)], target)
    assert not (target / "predictions.jsonl").exists()
    assert (target / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_error_leaves_an_older_report_alone(tmp_path, monkeypatch):
    target = tmp_path / "out"
    run = _small(tmp_path / "a")
    report.build([run], target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail(content):
        raise RuntimeError("disk full")

    monkeypatch.setattr(write, "page", fail)
    with pytest.raises(RuntimeError):
        report.build([_small(tmp_path / "b", run="other")], target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_bad_input_writes_nothing(tmp_path):
    run = _small(tmp_path / "a")
    (run / "results.json").write_text("{")
    with pytest.raises(InputError):
        report.build([run], tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_targets_that_would_do_harm_are_refused(tmp_path):
    run = _small(tmp_path / "a")
    with pytest.raises(InputError, match=r"target=.*is one of the runs"):
        report.build([run], run)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"target=.*is a file"):
        report.build([run], tmp_path / "file")
    with pytest.raises(InputError, match=r"training=.*no such folder"):
        report.build([run], tmp_path / "out", training=[tmp_path / "nowhere"])


def test_a_target_inside_a_run_is_fine(tmp_path):
    run = _small(tmp_path / "a", metrics=True)
    for _ in range(2):
        assert report.build([run], run / "report").exists()


def test_unknown_checkpoints_of_the_paper_are_refused(tmp_path):
    run = _small(tmp_path / "a", meta={"paper_checkpoints": "olmo"})
    with pytest.raises(InputError, match=r"meta\.paper_checkpoints='olmo' must be one of olmo2_7b"):
        report.build([run], tmp_path / "out")
