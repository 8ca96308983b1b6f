"""Each chunk of queries meets three short lists of keys, one softmax over all of them.

The lists are the strided keys, the initial keys that are not strided, and a slice of recent keys
with both of those masked out: no key is counted twice. With `local` 0 the slice would be a whole
chunk of keys for the sake of its diagonal, so the query's own key is scored elementwise instead.

Queries are taken in tiers of increasing position, so that early ones are not charged for strided
keys that lie in their future.
"""

import jax.numpy as jnp
from jax import lax

from ratjax_kernels.masked_attention import (
    chunk_of_queries,
    group_heads,
    map_chunks,
    masked_softmax,
    scores_of,
    weigh,
)

_TIERS = 4
_LONG = 256  # strided keys; below this, skipping some of them is not worth a second program


def strided_prefill(q, k, v, dilation, local, initial):
    """See `ratjax_kernels.strided_prefill.api`."""
    batch, length, heads, _ = q.shape
    local, initial = min(local, length), min(initial, length)
    if dilation == 1:  # every key is strided: the other lists are empty
        local = initial = 0
    strided = slice(dilation - 1, None, dilation) if dilation > 0 else slice(0, 0)
    lists = _Lists(k, v, dilation, local, initial)
    far = [x[:, strided] for x in (k, v)]
    near = local + 1
    per_query = batch * heads * (far[0].shape[1] + initial + near + 1)
    chunk = chunk_of_queries(per_query, length)
    if local:
        chunk = min(chunk, max(64, 1 << (local - 1).bit_length()))
    chunks = -(-length // chunk)
    tiers = min(_TIERS if far[0].shape[1] >= _LONG else 1, chunks)
    outputs = []
    for tier in range(tiers):
        first, last = tier * chunks // tiers, (tier + 1) * chunks // tiers
        reach = min(last * chunk, length)  # queries of this tier stand before it
        seen = reach // dilation if dilation > 0 else 0
        outputs.append(lists.attend(q, [x[:, :seen] for x in far], first, last - first, chunk))
    return jnp.concatenate(outputs, axis=1)[:, :length]


class _Lists:
    """The keys and values beside the strided ones, and which of them a query may see."""

    def __init__(self, k, v, dilation, local, initial):
        self.k, self.v = k, v
        self.dilation, self.local, self.initial = dilation, local, initial

    def attend(self, q, far, first, count, chunk):
        """Queries of the chunks first .. first + count - 1, [B, count * chunk, H, D]."""
        kv_heads, length = self.k.shape[2], self.k.shape[1]
        end = (first + count) * chunk
        q = q[:, first * chunk : end]
        q = jnp.pad(q, [(0, 0), (0, count * chunk - q.shape[1]), (0, 0), (0, 0)])
        back = self.local or 0
        # Recent keys of chunk c are k[c * chunk - local : (c + 1) * chunk]; `lead` zeros stand
        # before position 0, so that every slice has this one length.
        start, stop = first * chunk - back, end
        lead, tail = max(-start, 0), max(stop - length, 0)
        near = [
            jnp.pad(x[:, max(start, 0) : stop], [(0, 0), (lead, tail), (0, 0), (0, 0)])
            for x in (self.k, self.v)
        ]
        far_at = (jnp.arange(far[0].shape[1], dtype=jnp.int32) + 1) * max(self.dilation, 1) - 1
        initial_at = jnp.arange(self.initial, dtype=jnp.int32)
        head = [x[:, : self.initial] for x in (self.k, self.v)]

        def body(index):
            at = (first + index) * chunk + jnp.arange(chunk, dtype=jnp.int32)[:, None]
            q_chunk = group_heads(
                lax.dynamic_slice_in_dim(q, index * chunk, chunk, axis=1), kv_heads
            )
            k_near, v_near = (
                lax.dynamic_slice_in_dim(x, index * chunk, chunk + back, axis=1) for x in near
            )
            k_wide = jnp.concatenate([far[0], head[0]], axis=1)
            v_wide = jnp.concatenate([far[1], head[1]], axis=1)
            wide = [far_at <= at, (initial_at <= at) & ~self._is_strided(initial_at)]
            scores = [scores_of("btgrd,bsgd->btgrs", q_chunk, k_wide)]
            if self.local:
                near_at = (first + index) * chunk - back
                near_at = near_at + jnp.arange(chunk + back, dtype=jnp.int32)
                recent = (near_at <= at) & (at - near_at <= self.local) & (near_at >= 0)
                wide.append(recent & self._only_near(near_at))
                scores.append(scores_of("btgrd,bsgd->btgrs", q_chunk, k_near))
            else:
                wide.append(self._only_near(at))
                scores.append(scores_of("btgrd,btgd->btgr", q_chunk, k_near)[..., None])
            visible = jnp.concatenate([jnp.broadcast_to(x, (chunk, x.shape[-1])) for x in wide], -1)
            scores = jnp.concatenate(scores, axis=-1)
            weights = masked_softmax(scores, visible[None, :, None, None, :])
            split = k_wide.shape[1]
            out = weigh("btgrs,bsgd->btgrd", weights[..., :split], v_wide)
            if self.local:
                out += weigh("btgrs,bsgd->btgrd", weights[..., split:], v_near)
            else:
                out += weights[..., split:] * v_near[:, :, :, None].astype(jnp.float32)
            return out.astype(q.dtype)

        out = jnp.moveaxis(map_chunks(body, count), 0, 1)
        return out.reshape(q.shape)

    def _is_strided(self, at):
        return (at + 1) % self.dilation == 0 if self.dilation > 0 else jnp.zeros(at.shape, bool)

    def _only_near(self, at):
        return ~self._is_strided(at) & (at >= self.initial)
