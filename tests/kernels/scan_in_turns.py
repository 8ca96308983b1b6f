"""The memory's kernels, forward and backward, for some seconds: one of several on the same GPU.

python -m tests.kernels.scan_in_turns SECONDS
"""

import sys
import time

import jax
import jax.numpy as jnp

from ratjax_kernels import decay_scan

SHAPE = (32, 1024, 4, 128)  # long chains of tiles: 32 forward, 64 backward
LAUNCHES = 200


@jax.jit
def many(gates, k, v):
    def both_ways(_, inputs):
        outputs, pull = jax.vjp(lambda *x: decay_scan(gates, *x, implementation="triton"), *inputs)
        # Without a scale the numbers would grow past all bounds, and NaN equals nothing.
        return tuple((d / jnp.abs(d).max()).astype(d.dtype) for d in pull(outputs))

    return jax.lax.fori_loop(0, LAUNCHES, both_ways, (k, v))


def main(seconds: float) -> None:
    arrays = [jax.random.normal(jax.random.key(i), SHAPE, jnp.bfloat16) for i in range(3)]
    want = jax.block_until_ready(many(*arrays))
    assert all(jnp.isfinite(wanted).all() for wanted in want)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for have, wanted in zip(many(*arrays), want, strict=True):
            assert (have == wanted).all(), "another result in another run"


if __name__ == "__main__":
    main(float(sys.argv[1]))
