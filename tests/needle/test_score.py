"""Both scores on predictions as models make them, and intervals against published values."""

import numpy as np
import pytest
from scipy import stats

from ratjax.needle import confidence_interval, percent, ruler, strict

TWO = ["1234567", "7654321"]


@pytest.mark.parametrize(
    ("prediction", "answers", "expected_strict", "expected_ruler"),
    [
        ("1234567,7654321", TWO, 1.0, 1.0),
        ("7654321,1234567", TWO, 1.0, 1.0),
        (" 1234567 ,\n7654321 ", TWO, 1.0, 1.0),
        ("1234567", TWO, 0.5, 0.5),
        ("1234567,1234567", TWO, 0.5, 0.5),  # said twice
        ("1234567,7654321,9999999", TWO, 1.0, 1.0),  # one too many is not punished
        ("12345677654321", TWO, 0.0, 1.0),  # merged
        ("1234567 7654321", TWO, 0.0, 1.0),  # no comma
        ("is 1234567, 7654321", TWO, 0.5, 1.0),  # prefixed
        ("1234567.", ["1234567"], 0.0, 1.0),
        ("12345678", ["1234567"], 0.0, 1.0),
        ("123456", ["1234567"], 0.0, 0.0),
        ("", ["1234567"], 0.0, 0.0),
        (",,,", ["1234567"], 0.0, 0.0),
        ("Quick-Fox", ["quick-fox"], 0.0, 1.0),  # case
        ("quick-fox", ["Quick-Fox"], 0.0, 1.0),
        # The same answer twice: a set in the one, a list in the other.
        ("5", ["5", "5", "6"], 0.5, 2 / 3),
    ],
)
def test_scores(prediction, answers, expected_strict, expected_ruler):
    assert strict(prediction, answers) == pytest.approx(expected_strict)
    assert ruler(prediction, answers) == pytest.approx(expected_ruler)


def test_percent():
    assert percent([1, 0.5, 0, 0.25]) == 43.75


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3 (score interval): 81/263, 15/148, 0/20, 1/29.
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
        # n of n: low = n / (n + z^2).
        (500, 500, 100 * 500 / (500 + 1.959963984540054**2), 100.0),
    ],
)
def test_wilson_against_published_values(successes, n, low, high):
    scores = [1.0] * successes + [0.0] * (n - successes)
    # The table has four decimals of a share.
    assert confidence_interval(scores) == pytest.approx([low, high], abs=0.006)


def test_bootstrap_has_the_width_of_the_normal_interval():
    scores = np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, 1], size=500).tolist()
    low, high = confidence_interval(scores)
    reach = 1.96 * np.std(scores) / 500**0.5 * 100
    # Percentiles of 10,000 draws: their own error is some 2 % of the width.
    assert high - low == pytest.approx(2 * reach, rel=0.05)
    assert low < percent(scores) < high


def test_bootstrap_is_repeatable_and_ignores_order():
    scores = [i / 97 for i in range(97)]
    assert confidence_interval(scores) == confidence_interval(scores[::-1])
    assert confidence_interval(scores, seed=1) != confidence_interval(scores, seed=2)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_equal_scores_still_have_a_width(value):
    low, high = confidence_interval([value] * 20)
    assert 0 <= low <= 100 * value <= high <= 100 and high - low > 10


def test_bad_scores_are_refused():
    for scores in ([], [0.5, 1.5], [-0.1]):
        with pytest.raises(ValueError, match="within 0"):
            confidence_interval(scores)


@pytest.mark.parametrize("right", [0.5, 0.9, 0.99])
def test_wilson_covers_as_often_as_it_says(right):
    """Over every outcome of 500 prompts, weighted by its chance: no simulation."""
    n = 500
    covered = 0.0
    for count in range(n + 1):
        chance = stats.binom.pmf(count, n, right)
        if chance > 1e-9:
            low, high = confidence_interval([1] * count + [0] * (n - count))
            covered += chance * (low <= 100 * right <= high)
    # Wilson's interval is close to 95 % on average over rates, and within 2 % at each.
    assert 0.93 < covered < 0.975


def test_bootstrap_of_fractions_covers_as_often_as_it_says():
    """Scores of four answers each, of prompts that are not equally hard."""
    rng = np.random.default_rng(1)
    runs, covered = 200, 0
    for _ in range(runs):
        ease = rng.beta(4, 1, size=200)
        low, high = confidence_interval((rng.binomial(4, ease) / 4).tolist(), draws=2000)
        covered += low <= 80 <= high
    # 95 % with a binomial standard deviation of 1.5 %; four of them.
    assert covered / runs > 0.95 - 4 * 0.015
