"""comparisons.json: every difference with its interval and test, for other programs to read."""

import math
from dataclasses import asdict
from typing import Any

from ratjax.needle.report.compare import ALPHA, DRAWS, Difference
from ratjax.needle.report.content import Content


def comparisons_document(content: Content) -> dict[str, Any]:
    """Rows of `task` null are means over the tasks. Points of 100; intervals 95 %, paired.

    `over_seeds` is `CrossedMean` of fully right answers where there are several seeds; its
    `freedom` is null where seeds agree on every prompt.
    """
    rows = [
        {
            "context_length": comparison.group.context_length,
            "run": comparison.group.run,
            **_row(difference),
        }
        for comparisons in content.comparisons
        for comparison in comparisons
        for difference in (*comparison.averages.values(), *comparison.cells.values())
    ]
    return {"alpha": ALPHA, "bootstrap_draws": DRAWS, "bootstrap_seed": 0, "comparisons": rows}


def _row(difference: Difference) -> dict[str, Any]:
    row = asdict(difference)
    setting = row.pop("setting")
    interval, net = difference.interval, difference.net_of_dense
    if difference.over_seeds is not None and math.isinf(difference.over_seeds.freedom):
        row["over_seeds"]["freedom"] = None  # JSON has no infinity
    row["interval"] = None if interval is None else [interval.low, interval.high]
    row["net_of_dense"] = None if net is None else [net.mean, net.low, net.high]
    return {**setting, **row, "significant": difference.significant}
