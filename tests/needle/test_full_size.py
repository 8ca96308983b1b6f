"""The full-size benchmark runs, here on a CPU with a tiny model, and writes what a reader needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_rows_of_every_method(tmp_path):
    target = tmp_path / "found.json"
    small = "--model=tiny --dtype=float32 --context=128 --new_tokens=8 --batch=4 --block=16"
    rates = "--share=4 --bandwidth=1e10 --peak=1e11"
    script = ROOT / "kernels" / "benchmarks" / "needle_full.py"
    done = subprocess.run(
        [sys.executable, str(script), *f"{small} {rates}".split(), f"--target={target}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [row["case"].split("-")[-1] for row in rows] == [
        "dense", "quest", "snapkv", "moba", "dilated"
    ]  # fmt: skip
    assert [row["prefill_shared"] for row in rows] == [False, True, True, False, False]
    for row in rows:
        assert row["op"] == "needle_eval"
        assert row["minutes_per_setting"] > row["minutes_with_prefill_shared"] > 0
        assert 0 < row["read_entries_per_step"] <= 128
        # A prompt's 120 tokens, or the 32 that are kept; 2 layers, 2 heads of 16, float32.
        positions = row["cache_bytes"] / (2 * 2 * 2 * 16 * 4)
        assert positions > 32
    by_case = {row["case"].split("-")[-1]: row for row in rows}
    assert by_case["snapkv"]["cache_bytes"] < by_case["dense"]["cache_bytes"]
    assert by_case["quest"]["kv_bytes_per_token"] < by_case["dense"]["kv_bytes_per_token"]
