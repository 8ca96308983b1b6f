"""Loss curves from metrics.jsonl files."""

import json

import pytest

from ratjax.errors import InputError
from ratjax.needle.report.training import load_curves


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_phases_and_backbones_come_from_the_path(tmp_path):
    rows = [{"step": 10, "loss": 3.0, "lr": 1e-3}, {"step": 20, "loss": 2.0}]
    for place in (
        "train/memory/pretrain",
        "train/attention/pretrain",
        "seed1/sft-memory",
        ".",
        "train/memory-free",
    ):
        _write(tmp_path / place / "metrics.jsonl", rows)
    curves = load_curves([tmp_path], ["attention", "memory"])
    assert {(c.backbone, c.phase) for c in curves} == {
        ("memory", "train/pretrain"),
        ("attention", "train/pretrain"),
        ("memory", "seed1/sft"),
        (None, "train"),
        ("memory", "train-free"),
    }
    assert all((c.steps, c.losses, c.every) == ((10.0, 20.0), (3.0, 2.0), 1) for c in curves)


def test_long_curves_are_averaged_and_stops_skipped(tmp_path):
    rows = [{"step": s, "loss": float(s % 2)} for s in range(1, 1001)]
    rows[500]["loss"] = float("nan")
    _write(tmp_path / "metrics.jsonl", rows)
    (curve,) = load_curves([tmp_path], [])
    assert curve.every == 3 and len(curve.steps) == 333
    assert curve.steps[0] == 2 and all(0 <= loss <= 1 for loss in curve.losses)


def test_an_empty_file_is_no_curve(tmp_path):
    _write(tmp_path / "metrics.jsonl", [])
    assert load_curves([tmp_path], []) == ()


@pytest.mark.parametrize("line", ['{"step": 1}', '{"step": 1, "loss": 2', "[1]"])
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2: needs numbers"):
        load_curves([tmp_path], [])
