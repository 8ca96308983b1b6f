"""Compilations in processes of their own: one that hangs or dies costs only itself."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def trial(command: Sequence[str], timeout: float) -> dict[str, Any]:
    """Runs a command that ends with one JSON line.

    Args:
      command: what follows `python`.
      timeout: seconds.

    Returns:
      That line's object, or {"failed": why}.
    """
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not compiled within {timeout:g} s"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        return json.loads(last)
    except json.JSONDecodeError:
        said = done.stderr.strip().splitlines() or ["nothing"]
        return {"failed": f"status {done.returncode}: {said[-1]}"}


def ranked(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that fit, the fastest first."""
    return sorted((r for r in results if r.get("fits")), key=lambda r: r["step_seconds"])
