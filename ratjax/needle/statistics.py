"""Is a difference between two backbones more than luck? Small, pure functions.

Scores are paired: both backbones answer the same prompts. The paired bootstrap gives an interval
for a mean difference of scores in any range; McNemar's exact test judges all-or-nothing answers;
Holm's step-down rule keeps the chance of any false alarm over several tasks at `alpha`. What all
of them say is about other prompts; `random_effects` is about other seeds too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

# Differences of one stratum (a task), one a prompt. Strata differ in their numbers of prompts, so
# no letter may bind across a list of them.
Differences = Float64[np.ndarray, " _"]


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval, in the unit of the data."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    strata: Sequence[Differences], draws: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Percentile interval of the mean over strata of the mean difference, prompts resampled.

    Prompts are drawn with replacement within each stratum (Efron and Tibshirani 1993, chapter 13).

    Args:
        strata: differences [P] of each stratum.
        draws: bootstrap samples.
        confidence: share of the bootstrap means inside the interval.
        seed: of the generator; the result depends on nothing else, not even the prompts' order.

    Raises:
        ValueError: no strata, or an empty stratum.
    """
    if not strata or any(d.size == 0 for d in strata):
        raise ValueError("the bootstrap needs at least one prompt in every stratum")
    rng = np.random.default_rng(seed)
    means = sum(_resampled_means(differences, draws, rng) for differences in strata)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means / len(strata), [tail, 1 - tail])
    return Estimate(float(np.mean([d.mean() for d in strata])), float(low), float(high))


def _resampled_means(
    differences: Differences, draws: int, rng: np.random.Generator
) -> Float64[np.ndarray, " N"]:
    """Means of N samples of prompts, drawn with replacement.

    Prompts with equal differences are interchangeable. Where few values are distinct (scores take
    few) a sample is a multinomial over those, at a cost that does not grow with the prompts; else
    prompts are drawn one by one. The distribution is the same.
    """
    values, counts = np.unique(differences, return_counts=True)
    prompts = len(differences)
    if 8 * len(counts) <= prompts:
        return rng.multinomial(prompts, counts / prompts, size=draws) @ values / prompts
    ordered = np.repeat(values, counts)
    return ordered[rng.integers(prompts, size=(draws, prompts))].mean(axis=1)


def average_interval(estimates: Sequence[Estimate]) -> Estimate:
    """Interval of the mean of independent estimates, from their own (perhaps lopsided) intervals.

    The distances from mean to end add in quadrature, each side by itself (method of variance
    estimates recovery, Zou and Donner 2008).

    Raises:
        ValueError: no estimates.
    """
    if not estimates:
        raise ValueError("the average of no estimates")
    count = len(estimates)
    mean = math.fsum(e.mean for e in estimates) / count
    below = math.sqrt(math.fsum((e.mean - e.low) ** 2 for e in estimates)) / count
    above = math.sqrt(math.fsum((e.high - e.mean) ** 2 for e in estimates)) / count
    return Estimate(mean, mean - below, mean + above)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947).

    Where both backbones are right, or both wrong, a prompt says nothing. Among the others each
    backbone is as likely to be the right one if the two are equal: a fair coin.

    Args:
        only_first: prompts that the first answers and the second does not.
        only_second: the reverse.
    """
    discordant = only_first + only_second
    smaller = min(only_first, only_second)
    tail = sum(math.comb(discordant, i) for i in range(smaller + 1))
    return min(1.0, 2 * tail / 2**discordant)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def smallest_significant_difference(samples: int, tests: int = 1, alpha: float = 0.05) -> float:
    """The smallest difference, in points of 100, that McNemar's exact test could call significant.

    The best case: every discordant prompt favours the same backbone, so p = 2^(1-m) for m
    discordant prompts, to be at most alpha / tests (the bar that Holm's rule sets the smallest
    of `tests` p-values). The answer is 100 m / samples; infinite if m exceeds the samples.
    """
    needed = math.ceil(1 + math.log2(tests / alpha))
    return 100 * needed / samples if needed <= samples else math.inf


def detectable_difference(
    samples: int, discordant: float, tests: int = 1, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The difference, in points of 100, that McNemar's test finds with probability `power`.

    Connor (1987): samples = (z_a sqrt(s) + z_b sqrt(s - d^2))^2 / d^2 with s the share of
    discordant prompts, d the difference, z_a at 1 - alpha / (2 tests) and z_b at `power`; solved
    for d by bisection. A difference cannot exceed the discordant share, so the answer is infinite
    where even d = s is too small to be found.

    Args:
        samples: prompts.
        discordant: share of the prompts on which exactly one backbone is right, 0 to 1.
    """
    z_alpha = NormalDist().inv_cdf(1 - alpha / (2 * tests))
    z_power = NormalDist().inv_cdf(power)

    def found(d: float) -> bool:
        spread = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - d * d, 0))
        return samples * d * d >= spread * spread

    if discordant <= 0 or not found(discordant):
        return math.inf
    low, high = 0.0, discordant
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return 100 * high
