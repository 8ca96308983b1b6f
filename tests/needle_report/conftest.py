"""Run folders and a browser, made once for all tests of the report."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ratjax.needle import report
from ratjax.needle.report import compare, figures
from ratjax.needle.report.content import Content, collect
from ratjax.needle.report.page import page
from tests.needle_report import chromium, synthetic


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """Fewer bootstrap draws and coarser figures: what a report says of them is tested, and how
    well they estimate in test_statistics.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "DRAWS", 1000)
        patch.setattr(figures, "_RESOLUTION", 50)
        yield


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
def paper_run(tmp_path_factory) -> Path:
    """A run that repeats the paper's pair on OLMo2, with every selector, hit rates and times."""
    return synthetic.write_paper_run(tmp_path_factory.mktemp("runs") / "paper")


@pytest.fixture(scope="session")
def paper_content(paper_run) -> Content:
    """What the report of `paper_run` shows."""
    return collect([paper_run])


@pytest.fixture(scope="session")
def paper_page(paper_content, tmp_path_factory) -> Path:
    """Its page, without the other files of a report."""
    path = tmp_path_factory.mktemp("reports") / "paper.html"
    path.write_text(page(paper_content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Browser]:
    if chromium.PATH is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with chromium.Browser() as opened:
        yield opened
