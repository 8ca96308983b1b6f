"""One stable sort of the scores."""

import jax.numpy as jnp

from ratjax_kernels.selection import choose


def kept_positions(scores, lengths, window, capacity):
    """See `ratjax_kernels.compaction.api`."""
    position = jnp.arange(scores.shape[-1])
    lengths = lengths[:, None, None]
    return choose(scores, position < lengths, position >= lengths - window, capacity)
