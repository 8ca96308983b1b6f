"""Rows into cells, groups and averages."""

import statistics

import pytest

from ratjax.needle.report.grid import groups
from ratjax.needle.report.records import parse_result
from ratjax.needle.statistics import Estimate
from tests.needle_report import synthetic

DENSE, QUEST, *_ = synthetic.settings(methods=("quest",), budgets=("1/4",))


def _result(
    score,
    backbone="memory",
    task="niah_single_1",
    setting=QUEST,
    run="r",
    length=256,
    seed=0,
    **more,
):
    row = {
        "run": run,
        "backbone": backbone,
        "context_length": length,
        "train_seed": seed,
        **setting,
        "task": task,
        "score_strict": score,
        "score_ruler": score,
        "samples": 20,
        "ci95": [max(0, score - 10), min(100, score + 10)],
        "kv_read_fraction": 0.25,
        **more,
    }
    return parse_result(row, "x")


def test_one_replicate_keeps_its_own_interval():
    (group,) = groups([_result(60)])
    assert group.cell("memory", group.settings[0], "niah_single_1").strict == Estimate(
        60.0, 50.0, 70.0
    )
    assert group.cell("memory", group.settings[0], "niah_single_2") is None


def test_seeds_average_with_their_deviation():
    (group,) = groups([_result(score, seed=seed) for seed, score in enumerate((70, 95, 99))])
    (cell,) = group.cells.values()
    deviation = statistics.stdev((70, 95, 99))
    # One deviation up is above 100, and is a deviation all the same.
    assert cell.strict == Estimate(88.0, 88 - deviation, 88 + deviation)
    assert len(cell.results) == 3 and group.has_replicates


def test_selector_seeds_are_replicates_too():
    random = {**QUEST, "selector": "random"}
    rows = [_result(s, setting={**random, "selector_seed": s}) for s in (10, 20)]
    (group,) = groups([*rows, _result(90)])
    assert [s.selector for s in group.settings] == ["original", "random"]
    assert group.main_settings == group.settings[:1]
    assert group.average("memory", group.settings[1]).mean == 15


def test_context_lengths_are_groups():
    found = groups([_result(60, length=512), _result(70, length=256)])
    assert [(group.context_length, group.run) for group in found] == [(256, None), (512, None)]


def test_runs_merge_unless_they_evaluate_the_same_cell():
    pair = [_result(60, backbone="attention", run="a"), _result(70, run="m")]
    (group,) = groups(pair)
    assert group.run is None and group.backbones == ("attention", "memory")
    kept_apart = groups([*pair, _result(80, run="m2")])
    assert [group.run for group in kept_apart] == ["a", "m", "m2"]


def test_average_over_tasks_needs_all_of_them():
    rows = [
        _result(40, task="niah_single_1"),
        _result(80, task="niah_single_2"),
        _result(50, task="niah_single_1", backbone="attention"),
    ]
    (group,) = groups(rows)
    (setting,) = group.settings
    assert group.average("attention", setting) is None
    average = group.average("memory", setting)
    assert average.mean == 60
    # Two independent half widths of 10: sqrt(200) / 2.
    assert average.high - average.mean == pytest.approx(200**0.5 / 2)


def test_average_over_seeds_spreads_by_seed_not_by_task():
    rows = [
        _result(score, task=task, seed=seed)
        for seed, scores in enumerate([(0, 100), (10, 100)])
        for task, score in zip(("niah_single_1", "niah_single_2"), scores, strict=True)
    ]
    (group,) = groups(rows)
    average = group.average("memory", group.settings[0])
    assert average.mean == 52.5
    assert average.high - average.mean == pytest.approx(statistics.stdev((50, 55)))


def test_order_of_settings():
    chosen = [
        *synthetic.settings(methods=("snapkv", "quest"), budgets=("1/16", "1/4")),
        *synthetic.settings(methods=("quest",), budgets=("1/64",), block_size=4)[1:],
    ]
    (group,) = groups([_result(50, setting=setting) for setting in chosen])
    shown = [(s.method, s.block_size, s.budget) for s in group.settings]
    assert shown == [
        ("dense", None, "1"),
        ("quest", 16, "1/4"),
        ("quest", 16, "1/16"),
        ("quest", 4, "1/64"),
        ("snapkv", None, "1/4"),
        ("snapkv", None, "1/16"),
    ]
    names = [group.setting_name(s) for s in group.settings]
    assert names[1] == "Quest 1/4, blocks of 16" and names[-1] == "SnapKV 1/16"


def test_costs_average_over_what_was_measured():
    rows = [
        _result(1, seed=0, tokens_per_s=10),
        _result(1, seed=1),
        _result(1, seed=2, tokens_per_s=30),
    ]
    (group,) = groups(rows)
    (cell,) = group.cells.values()
    assert cell.cost("tokens_per_s") == 20
    assert cell.cost("cache_bytes") is None
