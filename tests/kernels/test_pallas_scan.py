"""The memory's TPU kernels: in Pallas' TPU interpreter, and through the TPU's compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import decay_scan
from ratjax_kernels.scan import pallas_kernels, pallas_tpu
from tests.kernels import oracle
from tests.kernels.pallas_devices import compiled, compiles_for_tpus, interpreted


def outputs_and_gradients(implementation, arrays, state, cotangents):
    out, pull = jax.vjp(
        lambda arrays, state: decay_scan(*arrays, state, True, implementation), arrays, state
    )
    return jax.tree.leaves((out, pull(cotangents)))


# Heads of 128 channels as they lie; others flattened, alone in a register or over several.
@pytest.mark.parametrize(
    "length,heads,channels,dtype",
    [
        (12, 8, 128, jnp.float32),
        (12, 3, 40, jnp.float32),
        (1, 1, 8, jnp.float32),
        (12, 9, 128, jnp.bfloat16),
    ],
)
def test_outputs_and_all_gradients(length, heads, channels, dtype, monkeypatch):
    # Several tiles in a short sequence, and still a loop in each.
    monkeypatch.setattr(pallas_tpu, "_TILE", 8 * 8 * 128 * 4)
    monkeypatch.setattr(pallas_kernels, "_UNROLL", 2)
    rng = np.random.default_rng(length)
    wide = [oracle.normal(rng, (2, length, heads, channels), dtype) for _ in range(5)]
    narrow = [oracle.normal(rng, (2, heads, channels)) for _ in range(4)]
    args = tuple(wide[:3]), tuple(narrow[:2]), (tuple(wide[3:]), tuple(narrow[2:]))
    have = interpreted(functools.partial(outputs_and_gradients, "pallas_tpu"), *args)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), args)
    want = oracle.run(functools.partial(outputs_and_gradients, "reference"), *exact)
    plain = oracle.run(functools.partial(outputs_and_gradients, "xla"), *args)
    for h, p, w in zip(have, plain, map(oracle.as64, want), strict=True):
        error, allowed = (np.abs(oracle.as64(x) - w).max() for x in (h, p))
        assert error <= max(2 * allowed, 1e-5)


def test_saturated_gates():
    rng = np.random.default_rng(0)
    gates, k, v = (oracle.normal(rng, (1, 20, 1, 128)) for _ in range(3))
    gates = np.array(gates)
    gates[:, 5], gates[:, 9], gates[:, 15:] = np.inf, -np.inf, np.inf

    def gradients(implementation, *arrays):
        def loss(*arrays):
            return sum((x**2).sum() for x in decay_scan(*arrays, implementation=implementation))

        return jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    have = interpreted(functools.partial(gradients, "pallas_tpu"), gates, k, v)
    want = oracle.run(functools.partial(gradients, "reference"), gates, k, v)
    for h, w in zip(have, want, strict=True):
        np.testing.assert_allclose(h, w, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(have[0])[:, [5, 9, 15, 19]], 0)


PROGRAM = """
    from ratjax_kernels import decay_scan

    def train(gates, k, v, dk, dv):
        scan = lambda *x: decay_scan(*x, implementation="pallas_tpu")
        out, pull = jax.vjp(scan, gates, k, v)
        return out, pull((dk, dv))

    for length in 4096, 32768:
        report(train, *[array(1, length, 32, 128)] * 5)
    report(train, *[array(4, 4096, 16, 128, dtype=jnp.float32)] * 5)
"""


@compiles_for_tpus
def test_compiles(chip):
    for kernels, temporary in compiled(chip, PROGRAM):
        assert kernels == 2
        # Nothing is laid out anew: beside arguments and results there are the states that enter
        # tiles.
        assert temporary < 32 * 2**20
