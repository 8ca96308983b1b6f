"""The paper's numbers: what matches ours, and that the data is the paper's."""

import pytest

from ratjax.needle.report import paper
from ratjax.needle.report.records import Setting


def _setting(method, block_size, budget, selector="original"):
    return Setting(method, block_size, None, budget, selector)


@pytest.mark.parametrize(
    "checkpoints, backbone, setting, task, score",
    [
        # Table 4, as the introduction cites it.
        ("olmo2_7b", "attention", _setting("quest", 64, "1/16"), "niah_multikey_2", 68.0),
        ("olmo2_7b", "memory", _setting("quest", 64, "1/16"), "niah_multikey_2", 98.6),
        ("olmo2_7b", "memory", _setting("moba", 64, "1/16"), "niah_multikey_3", 94.8),
        ("olmo2_7b", "attention", _setting("quest", 64, "1/16"), "niah_single_3", 97.4),
    ],
)
def test_quoted_numbers(checkpoints, backbone, setting, task, score):
    assert paper.find(checkpoints, backbone, setting, task).score == score


def test_averages_that_the_paper_states():
    # Table 3: SnapKV, 41.72 -> 75.83 at a quarter. Cells have one decimal, hence 0.01.
    setting = _setting("snapkv", None, "1/4")
    for backbone, average in (("attention", 41.72), ("memory", 75.83)):
        found = paper.find("ratplus_7b_100bt", backbone, setting, None)
        assert found.score == pytest.approx(average, abs=0.01)


def test_own_block_size_first_then_the_main_one():
    exact = paper.find("olmo2_7b", "memory", _setting("moba", 128, "1/4"), "niah_single_1")
    assert exact.block_size == 128
    other = paper.find("olmo2_7b", "memory", _setting("moba", 16, "2/8"), "niah_single_1")
    assert other.block_size == 64


def test_nothing_stands_in_for_what_the_paper_lacks():
    missing = [
        _setting("quest", 64, "1/2"),
        _setting("quest", 64, "1/64"),
        _setting("dilated", None, "1/4"),
        _setting("quest", 64, "1/16", "random"),
    ]
    for setting in missing:
        assert paper.find("olmo2_7b", "memory", setting, "niah_single_1") is None
    quest = _setting("quest", 64, "1/4")
    assert paper.find("olmo2_7b", "control", quest, "niah_single_1") is None
    assert paper.find("olmo2_7b", "memory", quest, "vt") is None


def test_random_selectors_carry_their_deviation():
    setting = _setting("quest", 64, "1/4", "random")
    found = paper.find("olmo2_7b", "memory", setting, "niah_single_1")
    assert (found.score, found.std) == (83.8, 1.92)
