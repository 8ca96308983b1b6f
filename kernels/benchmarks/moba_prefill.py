"""Times MoBA on whole sequences, forward and with all gradients, against dense attention by cuDNN.

Everything counts: block means, selection, lists, attention. Queries and keys are random, so that
neighbouring queries choose different blocks. The floor is the arithmetic of the listed pairs of
query and key (4 D operations each forward, 10 D backward) at the measured speed of a large matrix
product. Each stage is timed alone as well.
"""

import functools

import jax
import jax.numpy as jnp
import timing
from absl import app, flags

from ratjax_kernels import block_means, block_prefill, block_select
from ratjax_kernels.block_prefill import triton as moba
from ratjax_kernels.block_prefill import triton_launch as stages

_TARGET = flags.DEFINE_string("target", "moba_prefill.json", "Where the results go.")

BATCH, HEADS, CHANNELS = 2, 16, 128
# Name -> length, block size, blocks a query.
CASES = {
    "8192": (8192, 128, 8),
    "16384": (16384, 128, 8),
    "32768": (32768, 128, 8),
    "65536": (65536, 128, 8),
    "4096-block64-top4": (4096, 64, 4),
    "4096-block64-top8": (4096, 64, 8),
    "4096-block64-top16": (4096, 64, 16),
}


def _inputs(length):
    shape = (BATCH, length, HEADS, CHANNELS)
    return [
        jax.random.normal(key, shape, jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 4)
    ]


def _sparse(block_size, blocks, q, k, v):
    ids = block_select(q, block_means(k, block_size), block_size, blocks, True, "triton")
    return block_prefill(q, k, v, ids, block_size, "triton")


def _train(attention, q, k, v, d_out):
    out, pull = jax.vjp(attention, q, k, v)
    return out, pull(d_out)


def pairs(length: int, block_size: int, blocks: int) -> int:
    """Visible query-key pairs of one head."""
    own = sum(t % block_size + 1 for t in range(length))
    return own + sum(min(t // block_size, blocks - 1) * block_size for t in range(length))


def split(block_size: int, blocks: int, q, k, v, d_out) -> dict[str, float]:
    """Milliseconds of each stage alone."""
    times = {}

    def timed(name, function, *args):
        function = jax.jit(function)
        times[name] = timing.milliseconds(function, *args, calls=10, repeats=5)
        return function(*args)

    means = timed("block means", functools.partial(block_means, block_size=block_size), k)
    ids = timed(
        "selection",
        functools.partial(
            block_select, block_size=block_size, blocks=blocks, implementation="triton"
        ),
        q,
        means,
    )
    sizes = moba.sizes_of(block_size, q, k, ids)
    ids, lists = timed("lists", functools.partial(stages.make_lists, sizes), ids)
    parts = timed("visits", functools.partial(stages.visit, sizes), q, k, v, lists)
    near = timed("own and first block", functools.partial(stages.local, sizes), q, k, v, ids)
    out, lse = timed("merge", functools.partial(stages.merge, sizes), ids, *parts, *near)
    del parts
    delta = timed("delta", functools.partial(moba.delta_of, sizes), d_out, out)
    dk, dv, parts, *sums = timed(
        "gradients", functools.partial(stages.gradients, sizes), q, k, v, d_out, lse, delta, lists
    )
    timed("segments", functools.partial(stages.add_segments, sizes), dk, dv, *sums, lists)
    timed("query gradients", functools.partial(stages.add_entries, sizes), parts, ids)
    return times


def main(_):
    flops = timing.matmul_flops()
    rows = []
    for case, (length, block_size, blocks) in CASES.items():
        arrays = _inputs(length)
        q, k, v, _ = arrays
        sparse = functools.partial(_sparse, block_size, blocks)
        work = BATCH * HEADS * CHANNELS * pairs(length, block_size, blocks)
        calls = 20 if length < 32768 else 5
        stage_times = split(block_size, blocks, *arrays)
        print(case, {name: round(ms, 3) for name, ms in stage_times.items()}, flush=True)
        for op, operations, wrap, args in (
            ("moba_prefill_forward", 4 * work, lambda f: f, (q, k, v)),
            ("moba_prefill_train", 14 * work, lambda f: functools.partial(_train, f), arrays),
        ):
            ms, peer = (
                timing.milliseconds(jax.jit(wrap(f)), *args, calls=calls, repeats=5)
                for f in (sparse, timing.cudnn_attention)
            )
            floor = 1e3 * operations / flops
            rows.append(timing.row(op, case, q.shape, ms, floor, "cudnn dense", peer))
        rows[-1]["stages_ms"] = stage_times
    timing.finish(rows, {"matmul_flops_per_second": flops}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
