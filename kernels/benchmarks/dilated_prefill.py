"""Times dilated attention, forward and with gradients, against its arithmetic and cuDNN's dense.

The floor is the products of the pairs that see each other (two a pair forward, five more backward)
at the speed of a large matrix product in the same run. Dense attention is what a user would run
instead; it computes every pair.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import app, flags

from ratjax_kernels import strided_prefill

_TARGET = flags.DEFINE_string("target", "dilated_prefill.json", "Where the results go.")

SHAPE = (1, 32768, 32, 128)
# dilation, local, initial
CASES = {
    "32768-local0": (16, 0, 0),
    "32768-local0-initial4": (16, 0, 4),
    "32768-local256": (16, 256, 0),
}


def visible_pairs(length: int, dilation: int, local: int, initial: int) -> int:
    """Pairs of a query and a key it sees, over one sequence and head."""
    i = np.arange(length, dtype=np.int64)
    near = np.maximum(i - local, 0)  # from here on a query sees all up to itself
    first = np.minimum(near, initial)
    return int((i + 1 - near + first + near // dilation - first // dilation).sum())


def _train(attend):
    def step(q, k, v, d_out):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(d_out)

    return jax.jit(step)


def main(_):
    flops = timing.matmul_flops()
    q, k, v, d_out = (jax.random.normal(jax.random.key(i), SHAPE, jnp.bfloat16) for i in range(4))
    batch, length, heads, channels = SHAPE

    def times(attend):
        return {
            "dilated_prefill": timing.milliseconds(jax.jit(attend), q, k, v, calls=5),
            "dilated_prefill_train": timing.milliseconds(
                _train(attend), q, k, v, d_out, calls=5, repeats=5
            ),
        }

    dense = times(timing.cudnn_attention)
    rows = []
    for case, pattern in CASES.items():
        pairs = batch * heads * visible_pairs(length, *pattern)
        ours = times(functools.partial(strided_prefill, **_settings(pattern)))
        # Queries, own keys and values and outputs; then these, their gradients and one more.
        for op, products, arrays in (("dilated_prefill", 2, 4), ("dilated_prefill_train", 7, 12)):
            work = products * 2 * channels * pairs
            size = arrays * q.nbytes
            floor = 1e3 * work / flops
            rows.append(
                timing.row(
                    op, case, SHAPE, ours[op], floor, "cuDNN dense", dense[op],
                    bytes=size, flops=work,
                )
            )  # fmt: skip
    timing.finish(rows, {"matmul_flops_per_second": flops}, _TARGET.value)


def _settings(pattern):
    return dict(zip(("dilation", "local", "initial"), pattern, strict=True))


if __name__ == "__main__":
    app.run(main)
