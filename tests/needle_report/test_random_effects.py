"""Seeds and prompts as random effects: by hand, against an analysis of variance, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from ratjax.needle.random_effects import crossed_mean


def simulated(rng, seeds, prompts, effect=0.0, sd_seed=0.0, sd_prompt=0.0, sd_rest=1.0):
    return (
        effect
        + sd_seed * rng.standard_normal((seeds, 1))
        + sd_prompt * rng.standard_normal((1, prompts))
        + sd_rest * rng.standard_normal((seeds, prompts))
    )


def test_two_seeds_by_hand():
    # Rows mean 2 and 6, columns 2, 4, 6, all 4. MS seeds = 3 * ((2-4)^2 + (6-4)^2) / 1 = 24.
    # MS prompts = 2 * (4 + 0 + 4) / 2 = 8. Left over: (1,0), (3,0), (2,0) less what rows and
    # columns say: +-1, 0, -+1 -> MS rest = 4 / 2 = 2.
    table = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]])
    found = crossed_mean([table])
    assert found.mean == 4
    variance = (24 + (8 - 2)) / 6
    assert found.error == pytest.approx(math.sqrt(variance))
    # One seed less than there are, over the seeds' share of the variance.
    assert found.freedom == pytest.approx(1 / (24 / 30))
    # (MS seeds - MS rest) / P.
    assert found.between_seeds == pytest.approx(math.sqrt((24 - 2) / 3))
    t = 4 / math.sqrt(variance)
    assert found.p == pytest.approx(2 * stats.t.sf(t, found.freedom))
    reach = stats.t.ppf(0.975, found.freedom) * math.sqrt(variance)
    assert found.interval().low == pytest.approx(4 - reach)
    assert found.interval().high == pytest.approx(4 + reach)


def test_prompts_that_add_nothing_leave_the_t_test_over_seeds():
    """Where prompts vary no more than the rest does, seeds' means are all that counts."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((5, 40))
    table -= table.mean(axis=0)  # no prompt differs from another
    table += np.array([0.3, 0.1, 0.4, 0.2, 0.5])[:, None]
    found = crossed_mean([table])
    expected = stats.ttest_1samp(table.mean(axis=1), 0.0)
    assert (found.p, found.freedom) == pytest.approx((expected.pvalue, 4))


def test_seeds_that_agree_leave_the_error_over_prompts():
    row = np.random.default_rng(1).standard_normal(60)
    found = crossed_mean([np.tile(row, (4, 1))])
    assert found.error == pytest.approx(row.std(ddof=1) / math.sqrt(60))
    assert found.freedom == math.inf and found.between_seeds == 0
    # The normal distribution's 97.5 % point.
    assert found.interval().high - found.mean == pytest.approx(1.959964 * found.error)


def test_equal_strata_count_alike_and_share_their_seeds():
    """The same seed effect in two strata does not average out; prompts' effects do."""
    rng = np.random.default_rng(2)
    seed_effect = rng.standard_normal((3, 1))
    flat = [np.tile(seed_effect, (1, size)) for size in (10, 1000)]
    assert crossed_mean(flat).error == pytest.approx(crossed_mean(flat[:1]).error)
    row = rng.standard_normal((1, 50))
    once, twice = np.tile(row, (3, 1)), [np.tile(r, (3, 1)) for r in (row, -row)]
    assert crossed_mean(twice).error == pytest.approx(crossed_mean([once]).error / math.sqrt(2))
    assert crossed_mean([np.ones((2, 5)), np.zeros((2, 500))]).mean == 0.5


def test_seeds_that_happen_to_lie_close_are_not_believed():
    """The rest alone makes means over 4 prompts differ; means that do not are raised to that."""
    table = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    found = crossed_mean([table])
    # MS rest = 8 / 3, seeds' and prompts' means all 0: the variance is MS rest / (2 * 4).
    assert found.error == pytest.approx(math.sqrt(8 / 3 / 8))
    assert (found.freedom, found.between_seeds) == (1, 0)


@pytest.mark.parametrize(
    "seeds, sd_seed, sd_prompt",
    [(5, 0.3, 1.0), (2, 1.0, 0.0), (2, 0.4, 0.7), (3, 0.4, 0.7)],
)
def test_interval_covers_as_often_as_it_says(seeds, sd_seed, sd_prompt):
    rng = np.random.default_rng(3)
    runs, covered = 800, 0
    for _ in range(runs):
        table = simulated(rng, seeds, 60, 0.2, sd_seed, sd_prompt)
        interval = crossed_mean([table]).interval()
        covered += interval.low <= 0.2 <= interval.high
    # 93.6 % at least over 20,000 runs; binomial standard deviation here 0.9 %, four of them.
    assert covered / runs > 0.936 - 4 * 0.009


def test_interval_of_several_strata_covers():
    """Seeds shift every task, prompts one each; scores are 0 or 1 as in the tasks."""
    rng = np.random.default_rng(4)
    runs, covered, truth = 600, 0, 0.0
    for _ in range(runs):
        ability = 0.5 * rng.standard_normal((2, 3, 1))  # backbone, seed
        strata = []
        for _ in range(4):
            ease = rng.standard_normal((1, 50))
            right = [rng.random((3, 50)) < 1 / (1 + np.exp(-(side + ease))) for side in ability]
            strata.append(right[1].astype(float) - right[0])
        interval = crossed_mean(strata).interval()
        covered += interval.low <= truth <= interval.high
    assert covered / runs > 0.915  # four standard deviations below 95 %


def test_false_alarms_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(5)
    runs = 1000
    alarms = sum(
        crossed_mean([simulated(rng, 3, 40, 0.0, 0.4, 0.7)]).p <= 0.05 for _ in range(runs)
    )
    assert alarms / runs < 0.05 + 4 * 0.0069  # four binomial standard deviations


def test_detectable_difference_is_found_as_often_as_it_says():
    rng = np.random.default_rng(6)
    runs = 1000
    plan = {"sd_seed": 0.3, "sd_prompt": 1.0}
    # The error and the freedom that such studies have on average.
    many = [crossed_mean([simulated(rng, 8, 100, 0.0, **plan)]) for _ in range(200)]
    usual = float(np.median([study.detectable() for study in many]))
    found = sum(
        crossed_mean([simulated(rng, 8, 100, usual, **plan)]).p <= 0.05 for _ in range(runs)
    )
    # The formula takes the error as known; 0.8 within what that and 1000 runs leave open.
    assert 0.74 < found / runs < 0.87


def test_deviation_between_seeds_is_recovered():
    rng = np.random.default_rng(7)
    squares = [
        crossed_mean([simulated(rng, 6, 200, 0.0, 0.5, 1.0)]).between_seeds ** 2 for _ in range(300)
    ]
    # An estimate of 0.25 from 5 degrees of freedom has a deviation of 0.16; over 300 runs 0.009.
    assert np.mean(squares) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_without_any_variation(value):
    found = crossed_mean([np.full((3, 4), value)])
    assert (found.mean, found.error) == (value, 0)
    assert found.p == (1.0 if value == 0 else 0.0)
    assert found.interval().low == found.interval().high == value


@pytest.mark.parametrize(
    "strata",
    [[], [np.zeros((1, 5))], [np.zeros((3, 1))], [np.zeros((2, 5)), np.zeros((3, 5))]],
    ids=str,
)
def test_what_cannot_be_crossed_is_refused(strata):
    with pytest.raises(ValueError, match="crossed differences need"):
        crossed_mean(strata)
