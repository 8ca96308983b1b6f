"""Times SnapKV's vote and its whole compaction against arithmetic and against plain JAX.

The floor of the vote is its arithmetic, two walks over the keys with all query heads and queries of
the window, at the speed of a large matrix product in the same run. Compaction is the vote, pooling,
choice and gathering; its floor is the same, since the rest moves little.
"""

import jax
import jax.numpy as jnp
import timing
from absl import app, flags

from ratjax.sparsity import snapkv
from ratjax_kernels import prefer, window_scores

_TARGET = flags.DEFINE_string("target", "snapkv_score.json", "Where the results go.")

HEADS, KV_HEADS, CHANNELS, WINDOW, CAPACITY = 32, 8, 128, 64, 4096
CASES = {"1x131072": (1, 131072)}


def _score(implementation, q, k, v, lengths):
    def step(carry, q, k):
        lengths, _ = carry
        votes = window_scores(q, k, lengths, implementation)
        return _unchanged(lengths, votes[:, 0, 0]), votes

    carry = lengths + 0, jnp.zeros((k.shape[0], k.shape[2], k.shape[1]), jnp.float32)
    return timing.chained_milliseconds(step, carry, q[:, -WINDOW:], k, steps=20)


def _compress(implementation, q, k, v, lengths):
    def step(carry, q, k, v):
        lengths, *_ = carry
        kept = snapkv.compress(q, k, v, window=WINDOW, capacity=CAPACITY, lengths=lengths)
        return _unchanged(lengths, kept[2][:, 0, 0]), *kept

    jax.clear_caches()
    with prefer(implementation):
        start = lengths + 0, *snapkv.compress(q, k, v, window=WINDOW, capacity=CAPACITY)
        return timing.chained_milliseconds(step, start, q, k, v, steps=20)


def _unchanged(lengths, some):
    """`lengths`, but only after `some`, which is never negative: steps wait for each other."""
    return lengths + jnp.minimum(some, 0).astype(jnp.int32)


def main(_):
    flops = timing.matmul_flops()
    rows = []
    for case, (batch, slots) in CASES.items():
        keys = jax.random.split(jax.random.key(0), 3)
        q = jax.random.normal(keys[0], (batch, slots, HEADS, CHANNELS), jnp.bfloat16)
        k, v = (
            jax.random.normal(key, (batch, slots, KV_HEADS, CHANNELS), jnp.bfloat16)
            for key in keys[1:]
        )
        lengths = jnp.full((batch,), slots, jnp.int32)
        work = 2 * 2 * batch * HEADS * WINDOW * slots * CHANNELS
        floor = 1e3 * work / flops
        args = q, k, v, lengths
        shape = (batch, slots, HEADS, KV_HEADS, CHANNELS)
        for op, timed, size in (
            ("snapkv_score", _score, k.nbytes + 4 * batch * KV_HEADS * slots),
            ("snapkv_compress", _compress, k.nbytes + 4 * batch * KV_HEADS * CAPACITY * CHANNELS),
        ):
            rows.append(
                timing.row(
                    op, case, shape, timed("triton", *args), floor, "xla", timed("xla", *args),
                    bytes=size, flops=work,
                )
            )  # fmt: skip
    timing.finish(rows, {"matmul_flops_per_second": flops}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
