"""What a step does about a bad loss: the part that is compiled into it.

An optimizer step is bad where its loss or its gradient is not finite, or where its loss lies more
than `train.spike` standard deviations above a running mean. Parameters and moments then stay as
they were. The choice is made element by element as the new values are written, so the old ones
need not be kept beside them. Without a guard nothing of this is compiled.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from ratjax.config.train import TrainConfig

PASSES = 2  # optimizer steps of a batch, at most

Tree = TypeVar("Tree")


class Guard(NamedTuple):
    """What is remembered from step to step; a part of the state, and so of its checkpoints.

    Attributes:
      skipped: bad optimizer steps since the run began.
      in_row: by optimizer step of a batch: bad ones since its last good one. A good dense pass
        does not hide that every sparse pass before it is bad.
      losses: likewise: how many good losses, their mean, their variance.
    """

    skipped: Float32[Array | np.ndarray, ""]
    in_row: Float32[Array | np.ndarray, " passes"]
    losses: Float32[Array | np.ndarray, "passes 3"]


def initial_guard(train: TrainConfig) -> Guard | None:
    """The guard of a new run; None where the config asks for none."""
    if not train.is_guarded:
        return None
    return Guard(*(np.zeros(shape, np.float32) for shape in ((), (PASSES,), (PASSES, 3))))


def forget_losses(guard: Guard) -> Guard:
    """The guard at the start of a data stage, whose losses the earlier ones say nothing about."""
    return guard._replace(losses=jax.tree.map(lambda a: a * 0, guard.losses))


def judge(
    guard: Guard,
    place: int,
    loss: Float32[Array, ""],
    grad_norm: Float32[Array, ""],
    train: TrainConfig,
) -> tuple[Bool[Array, ""], Guard]:
    """Whether an optimizer step is good, and what is remembered of it.

    The mean and the variance of the good losses are plain ones over the first `spike_window` of
    them, and from there exponentially weighted, by 1 / `spike_window` for the newest.

    Args:
      guard: before the step.
      place: of the optimizer step in its batch.
      loss: what it minimises.
      grad_norm: of its gradient.
      train: what a spike is.
    """
    count, mean, variance = guard.losses[place]
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if train.spike:
        limit = mean + train.spike * jnp.sqrt(variance)
        good &= (count < train.spike_window) | (loss <= limit)
    share = jnp.maximum(1 / (count + 1), 1 / train.spike_window)
    gap = loss - mean
    seen = jnp.stack([count + 1, mean + share * gap, (1 - share) * (variance + share * gap**2)])
    bad = 1 - good.astype(jnp.float32)
    after = Guard(
        guard.skipped + bad,
        guard.in_row.at[place].set((guard.in_row[place] + 1) * bad),
        guard.losses.at[place].set(jnp.where(good, seen, guard.losses[place])),
    )
    return good, after


def choose(good: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` after a good step, `old` after a bad one."""
    return jax.tree.map(lambda a, b: jax.lax.select_n(good, b, a), new, old)


def to_plain(guard: Guard | None) -> dict[str, Any] | None:
    """A guard as JSON types, for a checkpoint's metadata."""
    if guard is None:
        return None
    return {name: np.asarray(value).tolist() for name, value in guard._asdict().items()}


def from_plain(stored: Mapping[str, Any] | None, fresh: Guard | None) -> Guard | None:
    """What `to_plain` gave; `fresh` where there was none, or none is wanted now."""
    if stored is None or fresh is None:
        return fresh
    found = Guard(*(np.asarray(stored[name], np.float32) for name in Guard._fields))
    # Older checkpoints have one count for all passes: it starts anew.
    return (
        found if found.in_row.shape == fresh.in_row.shape else found._replace(in_row=fresh.in_row)
    )
