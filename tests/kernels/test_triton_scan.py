"""The CUDA kernels of the memory: compiled ahead anywhere, run on a GPU against the reference."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import decay_scan
from tests.kernels import oracle
from tests.kernels.devices import (
    ON_GPU,
    assert_rounded_like,
    check_compiles,
    compiles_triton,
    error,
    needs_gpu,
    runs_triton,
)


def use_tiles(monkeypatch, window, ring):
    from ratjax_kernels.scan import triton as kernels

    tile = {"COLS": 64, "WINDOW": window, "num_warps": 2}
    tiles = {"ROWS": 8, **tile}, {"ROWS": 4, **tile, "AHEAD": 2}
    monkeypatch.setattr(kernels, "tiles_of", lambda batch, channels: tiles)
    monkeypatch.setattr(kernels, "_RING", ring)


@pytest.fixture
def quick_tiles(monkeypatch):
    """Tall tiles are unrolled, which takes the interpreter long."""
    if not ON_GPU:
        use_tiles(monkeypatch, window=2, ring=256)


@compiles_triton
@pytest.mark.parametrize("shape", [(4, 4096, 32, 128), (1, 131072, 16, 128)], ids=str)
def test_compiles_to_machine_code(shape, capability, capsys):
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def train(gates, k, v):
        return jax.grad(lambda *x: decay_scan(*x, implementation="triton")[0].sum())(gates, k, v)

    used = check_compiles(capsys, capability, train, array, array, array)
    assert [name for name, _ in used] == ["forward_kernel", "backward_kernel"]
    # A spilled register or two hides behind the wait for memory; more would add traffic.
    assert all(usage.spilled <= 16 for _, usage in used)


def inputs(length, dtype, batch, heads, channels):
    rng = np.random.default_rng(length)
    shape = (batch, length, heads, channels)
    arrays = tuple(oracle.normal(rng, shape, dtype, scale) for scale in (2, 1, 1))
    cotangents = tuple(oracle.normal(rng, shape, dtype) for _ in range(2))
    states = [
        tuple(oracle.normal(rng, (batch, heads, channels)) for _ in range(2)) for _ in range(2)
    ]
    return arrays, states[0], (cotangents, states[1])


def outputs_and_gradients(implementation, arrays, state, cotangents):
    @jax.jit
    def both(arrays, state, cotangents):
        out, pull = jax.vjp(
            lambda arrays, state: decay_scan(*arrays, state, True, implementation), arrays, state
        )
        return out, pull(cotangents)

    return [np.asarray(x, np.float64) for x in jax.tree.leaves(both(arrays, state, cotangents))]


CASES = [
    (1, 2, 2, 16, jnp.float32),
    (63, 2, 3, 40, jnp.float32),
    (65, 1, 1, 8, jnp.bfloat16),
    (63, 1, 2, 40, jnp.float16),
]
LARGE = [
    (4097, *rest, dtype)
    for rest in ((2, 4, 128), (4, 20, 128))  # few and many channels: both kinds of tiles
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
]


@runs_triton
@pytest.mark.parametrize(
    "length,batch,heads,channels,dtype",
    CASES + [pytest.param(*case, marks=needs_gpu) for case in LARGE],
)
def test_outputs_and_all_gradients(length, batch, heads, channels, dtype, quick_tiles):
    args = inputs(length, dtype, batch, heads, channels)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    want = outputs_and_gradients("reference", *wide)
    plain = outputs_and_gradients("xla", *args)
    have = outputs_and_gradients("triton", *args)
    again = outputs_and_gradients("triton", *args)
    for h, p, w, a in zip(have, plain, want, again, strict=True):
        assert_rounded_like(h, p, w)
        np.testing.assert_array_equal(h, a)


@runs_triton
def test_saturated_gates_and_vmap(quick_tiles):
    (gates, k, v), state, _ = inputs(60, jnp.float32, 1, 1, 32)
    gates = gates.at[:, 20].set(jnp.inf).at[:, 30].set(-jnp.inf).at[:, 50:].set(jnp.inf)

    def loss(gates, k, v, implementation):
        (k_mem, v_mem), last = decay_scan(gates, k, v, state, True, implementation)
        return (k_mem**2).sum() + (v_mem**3).sum() + last[0].sum()

    grads = jax.grad(loss, argnums=(0, 1, 2))(gates, k, v, "triton")
    want = jax.grad(loss, argnums=(0, 1, 2))(gates, k, v, "reference")
    for h, w in zip(grads, want, strict=True):
        np.testing.assert_allclose(h, w, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(grads[0][:, [20, 30, 50, 59]], 0)
    closed = decay_scan(jnp.full_like(gates, -jnp.inf), k, v, implementation="triton")[0]
    np.testing.assert_array_equal(closed, k)
    mapped = jax.vmap(lambda *x: decay_scan(*x, implementation="triton")[0])(
        gates[:, None], k[:, None], v[:, None]
    )
    np.testing.assert_array_equal(mapped[:, 0], decay_scan(gates, k, v, implementation="triton")[0])


@runs_triton
@pytest.mark.parametrize("window,ring", [(1, 1), (4, 8)])
def test_chains_of_tiles(window, ring, monkeypatch):
    """States passed from tile to tile and window to window, in rings that are used again."""
    use_tiles(monkeypatch, window, ring)
    args = inputs(5000 if ON_GPU else 90, jnp.float32, 2, 1, 80)
    want = outputs_and_gradients("reference", *args)
    for h, w in zip(outputs_and_gradients("triton", *args), want, strict=True):
        assert error(h, w) < 1e-6


@runs_triton
def test_under_shard_map_and_in_a_loop(quick_tiles):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    arrays, _, _ = inputs(40, jnp.float32, 2, 1, 16)

    def loss(scan, arrays):
        return sum((x**2).sum() for x in scan(*arrays))

    plain = functools.partial(decay_scan, implementation="triton")
    rows = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(plain, mesh=mesh, in_specs=rows, out_specs=rows)
    want = jax.grad(functools.partial(loss, plain))(arrays)
    have = jax.jit(jax.grad(functools.partial(loss, sharded)))(arrays)
    for h, w in zip(have, want, strict=True):
        np.testing.assert_array_equal(h, w)
    gates, k, v = arrays
    twice = plain(gates, *plain(gates, k, v))
    looped, _ = jax.lax.scan(lambda kv, _: (plain(gates, *kv), None), (k, v), None, length=2)
    for h, w in zip(looped, twice, strict=True):
        np.testing.assert_array_equal(h, w)


@pytest.mark.gpu
@needs_gpu
def test_is_the_default_on_a_gpu():
    (gates, k, v), _, _ = inputs(64, jnp.bfloat16, 1, 1, 32)

    def program(implementation):
        run = functools.partial(decay_scan, implementation=implementation)
        return jax.jit(run).lower(gates, k, v).as_text()

    assert "custom_call" in program(None)
    assert "custom_call" not in program("xla")


@pytest.mark.gpu
@pytest.mark.slow
@needs_gpu
def test_processes_that_take_turns_on_a_gpu():
    """A GPU suspends a kernel halfway to serve another process; tiles must not wait for ever."""
    command = [sys.executable, "-m", "tests.kernels.scan_in_turns", "20"]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    try:
        assert [process.wait(timeout=180) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
