"""Statistics against known values, brute force and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ratjax.needle import statistics
from ratjax.needle.statistics import Estimate


@pytest.mark.parametrize(
    "first, second", [(0, 0), (1, 0), (5, 5), (3, 12), (12, 3), (0, 9), (40, 61)]
)
def test_mcnemar_equals_the_binomial_test(first, second):
    total = first + second
    expected = stats.binomtest(first, total, 0.5).pvalue if total else 1.0
    assert statistics.mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_textbook_value():
    # Nine prompts, all in favour of one side: 2 * (1/2)^9.
    assert statistics.mcnemar_exact(9, 0) == 2 / 512


def test_mcnemar_stays_finite_for_many_prompts():
    assert 0 < statistics.mcnemar_exact(2000, 2600) < 1e-15


def test_holm_by_hand():
    # Sorted: 0.01*4, 0.02*3 -> 0.06, 0.03*2 -> 0.06, 0.04*1 -> kept at 0.06 by monotony.
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_rejects_what_the_step_down_rule_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.beta(0.3, 2, size=8)
        rejected = set()
        for rank, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (8 - rank):
                break
            rejected.add(int(index))
        adjusted = statistics.holm(p.tolist())
        assert {i for i, value in enumerate(adjusted) if value <= 0.05} == rejected


def test_false_alarms_over_eight_tasks_stay_below_alpha():
    """Equal backbones: of eight McNemar tests, corrected, hardly ever does any reject."""
    rng = np.random.default_rng(8)
    discordant = rng.binomial(500, [0.01, 0.05, 0.1, 0.2, 0.3, 0.3, 0.5, 0.5], size=(1500, 8))
    favour = rng.binomial(discordant, 0.5)
    p_values = [
        [statistics.mcnemar_exact(int(a), int(n - a)) for a, n in zip(*row, strict=True)]
        for row in zip(favour, discordant, strict=True)
    ]
    alone = np.mean([p <= 0.05 for row in p_values for p in row])
    any_of = np.mean([min(statistics.holm(row)) <= 0.05 for row in p_values])
    uncorrected = np.mean([min(row) <= 0.05 for row in p_values])
    # Exact tests keep below their level; four binomial standard deviations above it, of 12,000
    # tests and of 1500 families.
    assert 0.02 < alone < 0.05 + 4 * 0.002
    assert any_of < 0.05 + 4 * 0.0056
    assert uncorrected > 0.15  # so the correction does something


def test_bootstrap_equals_full_enumeration():
    # Four prompts have 4^4 equally likely resamples; with 40,000 draws the 10 % and 90 % points
    # of this coarse distribution lie well inside atoms, so they must agree exactly.
    differences = np.array([1.0, 0.0, 0.0, -1.0])
    means = [np.mean(c) for c in itertools.product(differences, repeat=4)]
    low, high = np.quantile(means, [0.1, 0.9])
    result = statistics.paired_bootstrap([differences], draws=40_000, confidence=0.8)
    assert (result.mean, result.low, result.high) == (0.0, low, high)


@pytest.mark.parametrize("distinct", [5, 400])
def test_bootstrap_agrees_with_the_normal_interval(distinct):
    # Few distinct values and many take different ways to the same distribution.
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1.0, size=distinct)[np.arange(400) % distinct]
    result = statistics.paired_bootstrap([differences])
    half = 1.96 * differences.std() / math.sqrt(400)
    assert result.mean == pytest.approx(differences.mean())
    # Percentiles of 10,000 draws: about 2 % noise on a half width.
    assert result.high - result.mean == pytest.approx(half, rel=0.06)
    assert result.mean - result.low == pytest.approx(half, rel=0.06)


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    runs, hits = 300, 0
    for _ in range(runs):
        sample = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=150)
        result = statistics.paired_bootstrap([sample], draws=1000)
        hits += result.low <= 0.2 <= result.high
    # 95 % of 300 with a binomial standard deviation of 1.3 %: four of them are 5 %.
    assert 0.90 <= hits / runs <= 1.0


def test_bootstrap_ignores_prompt_order_and_is_seeded():
    rng = np.random.default_rng(3)
    differences = rng.choice([-1.0, 0.0, 0.5, 1.0], size=60)
    shuffled = rng.permutation(differences)
    first = statistics.paired_bootstrap([differences], draws=500, seed=7)
    assert first == statistics.paired_bootstrap([shuffled], draws=500, seed=7)
    assert first != statistics.paired_bootstrap([differences], draws=500, seed=8)


def test_bootstrap_of_strata_weighs_tasks_equally():
    result = statistics.paired_bootstrap([np.ones(10), np.zeros(1000)], draws=100)
    assert result == Estimate(0.5, 0.5, 0.5)
    assert result.excludes_zero


@pytest.mark.parametrize("strata", [[], [np.zeros(3), np.zeros(0)]], ids=str)
def test_bootstrap_refuses_what_it_cannot_use(strata):
    with pytest.raises(ValueError, match="at least one prompt"):
        statistics.paired_bootstrap(strata)


def test_average_interval_of_equal_parts_shrinks_with_the_root():
    parts = [Estimate(50.0, 40.0, 64.0)] * 4
    assert statistics.average_interval(parts) == Estimate(50.0, 45.0, 57.0)


def test_smallest_significant_difference_is_the_edge_of_the_test():
    for samples, tests in [(20, 8), (40, 1), (500, 8)]:
        count = round(statistics.smallest_significant_difference(samples, tests) * samples / 100)
        assert statistics.mcnemar_exact(count, 0) <= 0.05 / tests
        assert statistics.mcnemar_exact(count - 1, 0) > 0.05 / tests
    assert statistics.smallest_significant_difference(20, 8) == 45.0
    assert statistics.smallest_significant_difference(5, 8) == math.inf


def test_detectable_difference_is_found_as_often_as_it_says():
    samples, share = 500, 0.2
    points = statistics.detectable_difference(samples, share)
    rng = np.random.default_rng(4)
    better, worse = (share + points / 100) / 2, (share - points / 100) / 2
    counts = rng.multinomial(samples, [better, worse, 1 - share], size=2000)
    found = np.mean([statistics.mcnemar_exact(int(a), int(b)) <= 0.05 for a, b, _ in counts])
    # The formula is the asymptotic test's; the exact test is a little more cautious.
    assert 0.72 < found < 0.84


def test_detectable_difference_limits():
    assert statistics.detectable_difference(500, 0.0) == math.inf
    assert statistics.detectable_difference(10, 0.1, tests=8) == math.inf
    assert statistics.detectable_difference(5000, 0.2) < statistics.detectable_difference(500, 0.2)
