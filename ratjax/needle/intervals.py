"""95 % intervals of a task's score."""

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # the normal distribution's 97.5 % point


def confidence_interval(
    scores: Sequence[float | int], *, seed: int = 0, draws: int = 10_000
) -> list[float]:
    """95 % interval of the mean score, in percent: [low, high] within 0 .. 100.

    Wilson's interval where every prompt scored 0 or 1: unlike the bootstrap's it keeps its width
    when all prompts score the same. Otherwise the percentile bootstrap over prompts. Where all
    scores are one and the same fraction the bootstrap has no width either, and Wilson's interval
    of that fraction is given: too wide rather than too narrow, since no score between 0 and 1
    varies more than a coin.

    Args:
      scores: one a prompt, each in 0 .. 1.
      seed: of the bootstrap; the interval does not depend on the prompts' order.
      draws: bootstrap samples.

    Raises:
      ValueError: no scores, or a score outside 0 .. 1.
    """
    values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
    if not len(values) or values[0] < 0 or values[-1] > 1:
        raise ValueError("an interval needs at least one score, and scores within 0 .. 1")
    n = int(counts.sum())
    if len(values) == 1 or set(values.tolist()) <= {0.0, 1.0}:
        return _wilson(float(values @ counts) / n, n)
    # Prompts of equal score are interchangeable, so a resample is a draw of their counts.
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    low, high = np.percentile(resampled @ values, [2.5, 97.5])
    return [100 * float(low) / n, 100 * float(high) / n]


def _wilson(mean: float, n: int) -> list[float]:
    """Wilson's score interval of a proportion `mean` out of `n`, in percent (Wilson 1927)."""
    middle = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    return [100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)]
