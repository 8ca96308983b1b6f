"""A full sort by (kept whatever the score, score, position)."""

import jax.numpy as jnp


def kept_positions(scores, lengths, window, capacity):
    """See `ratjax_kernels.compaction.api`."""
    slots = scores.shape[-1]
    position = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), scores.shape)
    lengths = lengths[:, None, None]
    largest = jnp.finfo(jnp.float32).max
    finite = jnp.clip(scores.astype(jnp.float32), -largest, largest)
    # Classes: the window, then other tokens, then none at all.
    kind = jnp.where(position >= lengths, 2, jnp.where(position >= lengths - window, 0, 1))
    by_score = jnp.where(kind == 1, -finite, 0.0)
    order = jnp.lexsort((position, by_score, kind), axis=-1)[..., :capacity]
    kept = jnp.where(order < lengths, order, slots)
    kept = jnp.sort(kept, axis=-1).astype(jnp.int32)
    kept = jnp.where(kept < slots, kept, -1)
    missing = max(capacity - slots, 0)
    return jnp.pad(kept, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
