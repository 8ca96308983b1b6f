"""Run folders and a browser, made once for all tests of the report."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ratjax.needle import report
from ratjax.needle.report.content import Content, collect
from tests.needle_report import chromium, synthetic


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Two backbones x (dense + 3 methods x 3 budgets) x 8 tasks, with predictions and metrics."""
    return synthetic.write_run(tmp_path_factory.mktemp("runs") / "pair")


@pytest.fixture(scope="session")
def content(run) -> Content:
    """What the report of `run` shows."""
    return collect([run])


@pytest.fixture(scope="session")
def built(run, tmp_path_factory) -> Path:
    """The report of `run`."""
    target = tmp_path_factory.mktemp("reports") / "pair"
    report.build([run], target, command="python -m launch.report --runs=pair --target=report")
    return target


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Browser]:
    if chromium.PATH is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with chromium.Browser() as opened:
        yield opened
