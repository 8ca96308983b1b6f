"""Predictions are streamed, belong to a result each, and add up to its score."""

import json

import pytest

from ratjax.errors import InputError
from ratjax.needle.report.load import load_runs
from ratjax.needle.report.predictions import read_predictions
from tests.needle_report import synthetic


@pytest.fixture
def small(tmp_path):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))
    return synthetic.write_run(
        tmp_path / "run", tasks=synthetic.TASKS[:2], samples=6, chosen=chosen, metrics=False
    )


def _lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def _rewrite(folder, lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text)


def test_every_cell_gets_its_scores_and_first_answers(small):
    lines = _lines(small)
    _rewrite(small, reversed(lines))
    (run,) = load_runs([small])
    cells = read_predictions([run], keep=2)
    assert len(cells) == 8
    for result in run.results:
        cell = cells[result.key]
        assert sorted(cell.strict) == list(range(6))
        assert 100 * sum(cell.strict.values()) / 6 == pytest.approx(result.score_strict, abs=0.01)
        assert sorted(answer.index for answer in cell.answers) == [0, 1]


def test_equal_prompts_have_equal_names_across_backbones(small):
    (run,) = load_runs([small])
    cells = read_predictions([run], keep=0)
    first, *_ = named = [cells[r.key].prompts for r in run.results if r.task == synthetic.TASKS[0]]
    assert len(named) == 4 and all(other == first for other in named)
    lines = _lines(small)
    lines[0]["prompt"] += "!"
    _rewrite(small, lines)
    changed = read_predictions(load_runs([small]), keep=0)[run.results[0].key].prompts
    assert {i for i in first if changed[i] != first[i]} == {0}


def test_a_setting_may_leave_out_what_is_not_needed_to_tell_cells_apart(small):
    lines = _lines(small)
    for line in lines:
        for field in ("run", "train_seed", "selector_seed"):
            del line["setting"][field]
    _rewrite(small, lines)
    assert len(read_predictions(load_runs([small]), keep=1)) == 8


def test_answers_come_with_their_prompts(small):
    for cell in read_predictions(load_runs([small]), keep=2).values():
        for answer in cell.answers:
            assert all(f"is: {value}." in answer.prompt for value in answer.gold)


def test_prompts_that_are_not_there_are_named(small):
    path = small / "prompts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "niah_single_2/1" not in line))
    assert read_predictions(load_runs([small]), keep=0)
    with pytest.raises(InputError, match=r"prompts.jsonl: without the prompt 'niah_single_2/1'"):
        read_predictions(load_runs([small]), keep=3)
    path.unlink()
    with pytest.raises(InputError, match=r"prompts.jsonl: without the prompt"):
        read_predictions(load_runs([small]), keep=3)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda line: json.dumps(line)[:-5] + "\n", "line 3: not valid JSON"),
        (lambda line: "17\n", "line 3: not an object"),
        (lambda line: {**line, "strict": 50}, "line 3: strict=50.0 must be between 0 and 1"),
        (lambda line: {**line, "prediction": None}, "line 3: field 'prediction'"),
        (lambda line: {k: v for k, v in line.items() if k != "index"}, "line 3: field 'index'"),
        (lambda line: {**line, "prompt": None}, "line 3: field 'prompt'"),
        (lambda line: {k: v for k, v in line.items() if k != "setting"}, "line 3: field 'setting'"),
        (lambda line: {**line, "task": "vt"}, "line 3: its setting and task fit 0 rows"),
        (lambda line: {**line, "setting": {"budget": "1"}}, "line 3: .* fit 2 rows"),
        (lambda line: {**line, "setting": {"k": [1]}}, "line 3: .* fit 0 rows"),
    ],
)
def test_a_bad_line_is_named(small, change, message):
    lines = _lines(small)
    lines[2] = change(lines[2])
    _rewrite(small, lines)
    with pytest.raises(InputError, match=message):
        read_predictions(load_runs([small]), keep=1)


def test_scores_that_do_not_add_up_are_refused(small):
    lines = _lines(small)
    lines[0]["strict"] = 1.0 - lines[0]["strict"]
    _rewrite(small, lines)
    with pytest.raises(InputError, match=r"average to .* states score_strict="):
        read_predictions(load_runs([small]), keep=1)
