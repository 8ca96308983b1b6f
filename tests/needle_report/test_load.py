"""Reading run folders: tolerant of what may be missing, strict about what may not."""

import json

import pytest

from ratjax.errors import InputError
from ratjax.needle.report.load import load_run, load_runs, merge_meta, merge_results
from ratjax.needle.report.records import KEY_FIELDS, parse_result
from tests.needle_report import synthetic


def _row(**changes):
    row = {
        "run": "r",
        "backbone": "memory",
        "context_length": 256,
        "train_seed": 0,
        "method": "quest",
        "block_size": 16,
        "k": 4,
        "budget": "1/4",
        "selector": "original",
        "selector_seed": None,
        "task": "niah_single_1",
        "score_strict": 90.0,
        "score_ruler": 95,
        "samples": 20,
        "ci95": [80, 100],
        "kv_read_fraction": 0.25,
    }
    return {**row, **changes}


def test_a_row_keeps_all_it_says():
    result = parse_result(_row(tokens_per_s=12, note="kept"), "x")
    assert result.setting.fraction == 0.25
    assert result.ci95 == (80.0, 100.0)
    assert result.cost("tokens_per_s") == 12.0
    assert result.cost("prefill_seconds") is None
    assert result.raw["note"] == "kept"
    assert dict(zip(KEY_FIELDS, result.key, strict=True))["budget"] == "1/4"


def test_optional_fields_may_be_null():
    row = _row(method="dense", block_size=None, k=None, budget="1", kv_read_fraction=None)
    assert parse_result(row, "x").kv_read_fraction is None


@pytest.mark.parametrize(
    "field",
    [*KEY_FIELDS, "score_strict", "score_ruler", "samples", "ci95", "kv_read_fraction"],
)
def test_a_missing_field_is_named_with_its_place(field):
    row = _row()
    del row[field]
    with pytest.raises(InputError) as error:
        parse_result(row, "a/results.json: results[3]")
    message = str(error.value)
    assert message.startswith(f"a/results.json: results[3]: field {field!r} is missing")
    assert "\n" not in message


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": "a quarter"},
        {"budget": "1/0"},
        {"budget": "2"},
        {"budget": 0.25},
        {"score_strict": 100.5},
        {"score_strict": "90"},
        {"score_ruler": float("nan")},
        {"samples": 0},
        {"samples": 2.0},
        {"context_length": True},
        {"ci95": [90]},
        {"ci95": [95, 90]},
        {"kv_read_fraction": 1.2},
        {"backbone": ""},
        {"k": "4"},
        {"tokens_per_s": "fast"},
    ],
    ids=str,
)
def test_a_wrong_value_is_named(changes):
    (field,) = changes
    with pytest.raises(InputError, match=rf"{field}=.* must be "):
        parse_result(_row(**changes), "x")


def test_a_fraction_read_may_miss_one_by_rounding():
    assert parse_result(_row(kv_read_fraction=1.0000001), "x").kv_read_fraction > 1


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such file"),
        ('{"meta": {}, "results": [', "not valid JSON"),
        ("[]", "field 'meta' is missing"),
        ('{"meta": {}}', "field 'results' is missing"),
        ('{"meta": {}, "results": []}', "field 'results' is empty"),
        ('{"meta": {}, "results": [7]}', r"results\[0\]: 7 is not an object"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_run(tmp_path)
    assert str(tmp_path / "results.json") in str(error.value)


def test_no_runs_are_refused():
    with pytest.raises(InputError, match="runs"):
        load_runs([])


def test_a_run_named_twice_counts_once(run):
    assert len(load_runs([run, run / ".", run.parent / run.name])) == 1


def _small(folder, **options):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))
    options = {"tasks": synthetic.TASKS[:2], "samples": 4, "metrics": False, **options}
    return synthetic.write_run(folder, chosen=chosen, **options)


def test_equal_cells_merge_and_different_ones_are_refused(tmp_path):
    first, second = _small(tmp_path / "a"), _small(tmp_path / "b")
    assert len(merge_results(load_runs([first, second]))) == 8
    document = json.loads((second / "results.json").read_text())
    document["results"][5]["score_strict"] = 1.0
    (second / "results.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"different values for the same cell .*backbone=memory"):
        merge_results(load_runs([first, second]))


def test_meta_keeps_what_agrees_and_lists_what_does_not(tmp_path):
    first = _small(tmp_path / "x" / "eval", run="one", meta={"device": "H100"})
    second = _small(tmp_path / "y" / "eval", run="two", meta={"device": "H200"})
    merged = merge_meta(load_runs([first, second]))
    assert merged["commit"] == "0123abc"
    assert merged["device"] == {"x/eval": "H100", "y/eval": "H200"}
    assert merged["merged_from"] == ["x/eval", "y/eval"]
    assert (
        merge_meta(load_runs([first])) == json.loads((first / "results.json").read_text())["meta"]
    )
