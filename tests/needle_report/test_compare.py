"""Backbones paired prompt by prompt."""

import json

import numpy as np
import pytest

from ratjax.needle.random_effects import crossed_mean
from ratjax.needle.report.compare import compare, dense_gap, score_interval
from ratjax.needle.report.comparisons import comparisons_document
from ratjax.needle.report.content import collect
from ratjax.needle.report.grid import groups
from ratjax.needle.report.load import load_runs, merge_results
from ratjax.needle.report.pairing import independent
from ratjax.needle.report.predictions import read_predictions
from ratjax.needle.statistics import holm, mcnemar_exact

TASKS = ("niah_single_1", "niah_multivalue")
DENSE = {"method": "dense", "block_size": None, "k": None, "budget": "1"}
QUEST = {"method": "quest", "block_size": 16, "k": 4, "budget": "1/4"}


def _write(folder, scores, seeds=(0,), prompts=lambda backbone, task, i: f"{task} {i}"):
    """`scores`: (backbone, method, task, seed) -> strict scores a prompt."""
    folder.mkdir()
    results, lines = [], []
    for (backbone, method, task, seed), strict in scores.items():
        setting = DENSE if method == "dense" else QUEST
        named = {"run": "r", "backbone": backbone, "context_length": 256, "train_seed": seed}
        named |= {**setting, "selector": "original", "selector_seed": None}
        mean = 100 * sum(strict) / len(strict)
        results.append(
            {
                **named,
                "task": task,
                "score_strict": round(mean, 2),
                "score_ruler": round(mean, 2),
                "samples": len(strict),
                "ci95": [0, 100],
                "kv_read_fraction": 0.5,
            }
        )
        for index, value in enumerate(strict):
            line = {"setting": named, "task": task, "index": index, "strict": value}
            line |= {"prompt": prompts(backbone, task, index), "prediction": ""}
            lines.append(json.dumps(line) + "\n")
    (folder / "results.json").write_text(json.dumps({"meta": {}, "results": results}))
    (folder / "predictions.jsonl").write_text("".join(lines))
    return folder


def _compare(folder):
    runs = load_runs([folder])
    (group,) = groups(merge_results(runs))
    return group, compare(group, read_predictions(runs, keep=0))


def _scores(n=20):
    """Attention answers the first prompts, memory more of them; dense both answer all."""
    ones = lambda k: [1.0] * k + [0.0] * (n - k)  # noqa: E731
    scores = {}
    for task, attention, memory in zip(TASKS, (4, 10), (18, 10), strict=True):
        scores["attention", "dense", task, 0] = ones(n)
        scores["memory", "dense", task, 0] = ones(n - 2)
        scores["attention", "quest", task, 0] = ones(attention)
        scores["memory", "quest", task, 0] = ones(memory)
    return scores


def test_cells_are_tested_and_corrected_over_the_tasks(tmp_path):
    _, (comparison,) = _compare(_write(tmp_path / "r", _scores()))
    cells = {(s.method, task): d for (s, task), d in comparison.cells.items()}
    first, second = cells["quest", TASKS[0]], cells["quest", TASKS[1]]
    assert first.points == pytest.approx(70)
    assert (first.prompts, first.only_baseline, first.only_other) == (20, 0, 14)
    assert first.p == mcnemar_exact(0, 14)
    assert [first.p_holm, second.p_holm] == holm([first.p, second.p])
    assert first.significant and not second.significant
    assert first.interval.low > 0
    # The same prompts are right: there is no difference, and nothing to resample.
    assert (second.points, second.interval.low, second.interval.high, second.p) == (0, 0, 0, 1)
    assert cells["dense", TASKS[0]].only_baseline == 2
    assert len(comparison.tested) == 2


def test_average_is_paired_and_net_of_the_dense_gap(tmp_path):
    group, (comparison,) = _compare(_write(tmp_path / "r", _scores()))
    quest = next(s for s in group.settings if s.method == "quest")
    average = comparison.averages[quest]
    assert average.points == pytest.approx(35)
    assert average.interval.low < 35 < average.interval.high
    # Dense, memory is 10 points behind on both tasks.
    assert average.net_of_dense.mean == pytest.approx(45)
    assert dense_gap(group, "memory", quest) - dense_gap(
        group, "attention", quest
    ) == pytest.approx(45)
    assert comparison.averages[group.dense_setting].net_of_dense is None


def test_only_equal_prompts_are_paired(tmp_path):
    def prompts(backbone, task, i):
        return f"{task} {i}{backbone if i >= 15 else ''}"

    _, (comparison,) = _compare(_write(tmp_path / "r", _scores(), prompts=prompts))
    assert {d.prompts for d in comparison.cells.values()} == {15}


def test_different_prompts_leave_the_difference_untested(tmp_path):
    prompts = lambda backbone, task, i: f"{backbone} {task} {i}"  # noqa: E731
    group, (comparison,) = _compare(_write(tmp_path / "r", _scores(), prompts=prompts))
    cell = comparison.cells[group.settings[1], TASKS[0]]
    assert cell.points == pytest.approx(70)
    assert cell.p is None and cell.interval is None and not cell.significant
    assert comparison.averages[group.settings[1]].interval is None
    assert comparison.tested == []


def test_seeds_vote_once_a_prompt(tmp_path):
    scores = {
        (backbone, "quest", TASKS[0], seed): values
        for seed, (attention, memory) in enumerate(
            [
                # Prompt 0: memory in both seeds; 1: one each; 2: attention in one; 3: nobody.
                ([0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
                ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.5]),
            ]
        )
        for backbone, values in (("attention", attention), ("memory", memory))
    }
    _, (comparison,) = _compare(_write(tmp_path / "r", scores))
    (cell,) = comparison.cells.values()
    assert (cell.only_baseline, cell.only_other) == (1, 1)
    assert cell.points == pytest.approx(100 * (3.5 - 2) / 8)
    assert cell.prompts == 4


def _seeded(seeds, n=40):
    """Memory answers `gains[seed]` more of 40 prompts than attention does, on one task."""
    ones = lambda k: [1.0] * k + [0.0] * (n - k)  # noqa: E731
    return {
        (backbone, "quest", TASKS[0], seed): ones(10 + (gain if backbone == "memory" else 0))
        for seed, gain in enumerate(seeds)
        for backbone in ("attention", "memory")
    }


def test_seeds_are_a_random_effect(tmp_path):
    """The same gain on average: sure where every training has it, not where one has it all."""
    _, (steady,) = _compare(_write(tmp_path / "a", _seeded((10, 11, 9))))
    _, (fickle,) = _compare(_write(tmp_path / "b", _seeded((0, 30, 0))))
    ((steady,), (fickle,)) = (c.cells.values() for c in (steady, fickle))
    assert steady.points == fickle.points == 25
    assert steady.seeds == fickle.seeds == 3
    assert steady.interval.low > 5 and steady.significant
    assert fickle.interval.low < 0 < fickle.interval.high and not fickle.significant
    # Every prompt's vote favours memory, so McNemar's test alone would have been passed.
    assert mcnemar_exact(fickle.only_baseline, fickle.only_other) < 0.001
    assert fickle.p == fickle.over_seeds.p > 0.05
    assert steady.over_seeds.detectable() < fickle.over_seeds.detectable()


def test_a_cell_of_several_seeds_has_an_interval_over_seeds_and_prompts(tmp_path):
    runs = load_runs([_write(tmp_path / "r", _seeded((5, 15, 10)))])
    (group,) = groups(merge_results(runs))
    predictions = read_predictions(runs, keep=0)
    cell = group.cell("memory", group.settings[0], TASKS[0])
    found = score_interval(cell, predictions)
    # 15, 25 and 20 of 40 prompts.
    rows = np.array([[100.0] * k + [0.0] * (40 - k) for k in (15, 25, 20)])
    expected = crossed_mean([rows]).interval()
    assert found.mean == cell.strict.mean == 50
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.low < cell.strict.low  # one standard deviation over seeds is less
    # Without predictions that deviation is all there is.
    assert score_interval(cell, {}) == cell.strict


def test_the_memory_faces_its_control_too(tmp_path):
    scores = _scores()
    scores |= {("control", *key[1:]): value for key, value in scores.items() if "memory" in key}
    _, comparisons = _compare(_write(tmp_path / "r", scores))
    pairs = [(comparison.baseline, comparison.other) for comparison in comparisons]
    assert pairs == [("attention", "memory"), ("attention", "control"), ("control", "memory")]
    # The control answers as the memory does: all that memory gains over attention was training.
    assert {d.points for d in comparisons[2].cells.values()} == {0}
    assert not any(d.significant for d in comparisons[2].cells.values())


def test_comparisons_are_plain_json(tmp_path):
    """Seeds that agree on every prompt have infinitely many degrees of freedom."""
    folder = _write(tmp_path / "r", _seeded((10, 10)))
    asked = ({"prompt": f"{TASKS[0]} {i}", "input": "?", "outputs": ["1"]} for i in range(40))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    document = comparisons_document(collect([folder]))
    rows = json.loads(json.dumps(document, allow_nan=False))["comparisons"]
    (cell,) = (row for row in rows if row["task"] is not None)
    assert cell["seeds"] == 2 and cell["over_seeds"]["mean"] == 25
    assert cell["over_seeds"]["freedom"] is None and cell["significant"]


def test_selector_seeds_of_one_training_are_no_trainings():
    rows = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0], [0.0, 4.0]])
    trained = ((0, 0), (0, 1), (1, 0), (1, 1))
    assert independent(rows, trained).tolist() == [[2.0, 0.0], [0.0, 6.0]]
    drawn = ((0, 0), (0, 1), (0, 2), (0, 3))
    assert independent(rows, drawn) is rows


def test_one_backbone_has_nothing_to_compare(tmp_path):
    scores = {key: value for key, value in _scores().items() if key[0] == "memory"}
    _, comparisons = _compare(_write(tmp_path / "r", scores))
    assert comparisons == ()
