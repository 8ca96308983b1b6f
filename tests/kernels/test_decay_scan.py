import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ratjax_kernels import decay_scan, decay_step
from ratjax_kernels.scan import xla
from tests.kernels import oracle

# 256 is what a CPU uses; 16 puts several chunks, and a padded one, into short sequences. What is
# shorter than both is one chunk in either.
CHUNKS = (16, 256)


@pytest.fixture(params=["reference", "xla_16", "xla_256"])
def implementation(request, monkeypatch):
    name, _, chunk = request.param.partition("_")
    if chunk:
        monkeypatch.setattr(xla, "chunk_length", lambda: int(chunk))
    return name


@pytest.fixture(params=CHUNKS)
def chunk(request, monkeypatch):
    monkeypatch.setattr(xla, "chunk_length", lambda: request.param)
    return request.param


def run(gates, k, v, state=None, implementation="xla"):
    """Compiles as one program, afresh at each call since `chunk` is read while tracing."""

    def whole(gates, k, v, state):
        return decay_scan(gates, k, v, state, return_state=True, implementation=implementation)

    return jax.jit(whole)(gates, k, v, state)


def inputs(length, dtype=jnp.float32, batch=2, heads=3, channels=4, seed=0):
    rng = np.random.default_rng(seed)
    shape = (batch, length, heads, channels)
    gates, k, v = (oracle.normal(rng, shape, dtype, scale) for scale in (2, 1, 1))
    state = tuple(oracle.normal(rng, (batch, heads, channels)) for _ in range(2))
    return gates, k, v, state


@pytest.mark.parametrize(
    "length,with_state", [(1, True), (16, True), (65, False), (65, True), (130, True)]
)
def test_matches_the_float64_recurrence(implementation, length, with_state):
    gates, k, v, state = inputs(length)
    state = state if with_state else None
    got, last = run(gates, k, v, state, implementation)
    want_k, want_v, last_k, last_v = oracle.decay_scan(gates, k, v, *(state or ()))
    # Averages of numbers of order one: a few float32 roundings, and no growth with length.
    for have, want in zip((*got, *last), (want_k, want_v, last_k, last_v), strict=True):
        np.testing.assert_allclose(have, want, atol=2e-6, rtol=0)


def test_bfloat16_costs_one_rounding(implementation):
    gates, k, v, state = inputs(130, jnp.bfloat16)
    got, last = run(gates, k, v, state, implementation)
    want_k, want_v, last_k, last_v = oracle.decay_scan(gates, k, v, *state)
    assert got[0].dtype == got[1].dtype == jnp.bfloat16
    assert last[0].dtype == last[1].dtype == jnp.float32
    # The state is float32 throughout, so the output is off by its own rounding (2^-8) and no more.
    for have, want in zip(got, (want_k, want_v), strict=True):
        np.testing.assert_allclose(np.asarray(have, np.float64), want, rtol=2**-7.99, atol=2e-6)
    for have, want in zip(last, (last_k, last_v), strict=True):
        np.testing.assert_allclose(have, want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("chunk,length", [(16, 1), (16, 17), (256, 17)], indirect=["chunk"])
def test_gradients_match_finite_differences(length, chunk):
    # Compiled once, of a new function, since `chunk` is read while tracing.
    scan = jax.jit(lambda *x: decay_scan(*x, return_state=True, implementation="xla"))
    # Finite differences in float32: two digits.
    tolerances = {"atol": 2e-2, "rtol": 2e-2}
    check_grads(scan, inputs(length, channels=2), order=1, modes=["rev"], **tolerances)


def gradients(implementation, length, dtype):
    w_k, w_v = inputs(length, seed=1)[1:3]
    w_state = inputs(1, seed=2)[3]

    def loss(gates, k, v, state):
        (k_mem, v_mem), last = decay_scan(gates, k, v, state, True, implementation)
        total = (k_mem * w_k).astype(jnp.float32).sum() + (v_mem * w_v).astype(jnp.float32).sum()
        return total + sum((a * b).sum() for a, b in zip(last, w_state, strict=True))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*inputs(length, dtype))
    return jax.tree.leaves(grads)


@functools.cache  # for all chunks
def reference_gradients(length, dtype):
    return gradients("reference", length, dtype)


@pytest.mark.parametrize(
    "chunk,length,dtype",
    [
        (16, 1, jnp.float32),
        (16, 65, jnp.float32),
        (16, 130, jnp.float32),
        (256, 130, jnp.float32),
        (16, 130, jnp.bfloat16),
        (256, 130, jnp.bfloat16),
    ],
    indirect=["chunk"],
)
def test_gradients_match_the_reference(length, dtype, chunk):
    # float32: roundings of sums of a few dozen terms. bfloat16: both round the same float32
    # gradient once, so they differ by at most one unit in the last place (2^-7 of the value).
    rtol, atol = (1e-5, 1e-5) if dtype == jnp.float32 else (2**-7, 1e-5)
    have = gradients("xla", length, dtype)
    for a, b in zip(have, reference_gradients(length, dtype), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol, atol)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_closed_gates_give_the_input_back_bit_for_bit(implementation, dtype):
    gates, k, v, state = inputs(70, dtype)
    gates = np.full_like(gates, -np.inf)
    (k_mem, v_mem), _ = run(gates, k, v, state, implementation)
    np.testing.assert_array_equal(k_mem, k)
    np.testing.assert_array_equal(v_mem, v)


def test_open_gates_carry_the_state(implementation):
    gates, k, v, state = inputs(70)
    gates = np.array(gates)
    gates[:, 30:] = np.inf
    out = run(gates, k, v, state, implementation)
    (k_mem, _), (k_last, v_last) = jax.tree.map(np.asarray, out)
    # Exact within a chunk; a chunk's entering state comes from the composed maps, one rounding off.
    np.testing.assert_allclose(
        k_mem[:, 30:], np.broadcast_to(k_mem[:, 29:30], k_mem[:, 30:].shape), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(k_last, k_mem[:, 29], rtol=1e-6, atol=1e-7)
    assert np.isfinite(v_last).all()


def test_saturated_gates_have_zero_gradient_and_no_nan(implementation):
    gates, k, v, state = inputs(40)
    gates = np.array(gates)
    gates[:, 3], gates[:, 20], gates[:, 30] = np.inf, -np.inf, 500

    def loss(gates, k, v, state):
        (k_mem, v_mem), last = decay_scan(gates, k, v, state, True, implementation)
        return (k_mem**2).sum() + (v_mem**3).sum() + last[0].sum()

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(gates, k, v, state)
    grads = jax.tree.map(np.asarray, grads)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
    for t in (3, 20, 30):
        np.testing.assert_array_equal(grads[0][:, t], 0)
    np.testing.assert_array_equal(grads[1][:, 3], 0)  # an open gate lets nothing in
    assert np.abs(grads[0][:, 10]).min() > 0


def test_small_inflow_keeps_its_precision():
    # At a gate logit of 16 the inflow is 1.1e-7, which 1 - s(16) in float32 would round to 1.19e-7.
    gates, ones = (np.full((1, 5, 1, 1), x, np.float32) for x in (16, 1))
    (k_mem, _), _ = run(gates, ones, ones)
    inflow = 1 / (1 + np.exp(16.0))
    np.testing.assert_allclose(np.asarray(k_mem)[0, :, 0, 0], inflow * np.arange(1, 6), rtol=1e-5)


def test_a_split_sequence_continues_from_its_state(chunk):
    *wide, state = inputs(100)
    wide = [np.asarray(x) for x in wide]
    whole, last = run(*wide, state)
    head, middle = run(*(x[:, :37] for x in wide), state)
    tail, end = run(*(x[:, 37:] for x in wide), middle)
    for i in range(2):
        joined = np.concatenate([head[i], tail[i]], axis=1)
        np.testing.assert_allclose(joined, whole[i], atol=1e-6)
        np.testing.assert_allclose(end[i], last[i], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_steps_reproduce_the_scan(dtype):
    gates, k, v, state = inputs(20, dtype)
    (k_mem, v_mem), last = run(gates, k, v, state, "reference")
    gates, k, v, k_mem, v_mem = (np.asarray(x) for x in (gates, k, v, k_mem, v_mem))
    step = jax.jit(decay_step)
    for t in range(20):
        out, state = step(gates[:, t], k[:, t], v[:, t], state)
        # Same float32 arithmetic up to fused multiply-adds; the narrow output may round either way.
        rtol = 1e-6 if dtype == jnp.float32 else 2**-7
        for have, want in zip(out, (k_mem[:, t], v_mem[:, t]), strict=True):
            assert have.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(have, np.float32), np.asarray(want, np.float32), rtol, 1e-6
            )
    for have, want in zip(state, last, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-6)


def test_works_under_jit_vmap_and_scan(chunk):
    args = [np.asarray(x) for x in inputs(33)[:3]]
    single = tuple(x[:, None] for x in args)
    (want, _), _ = run(*args, implementation="reference")
    jitted, _ = jax.jit(lambda *x: decay_scan(*x))(*args)  # new, as in `run`
    mapped, _ = jax.jit(jax.vmap(lambda *x: decay_scan(*x)))(*single)
    _, (scanned, _) = jax.lax.scan(lambda carry, x: (carry, decay_scan(*x)), 0, single)
    for have in (jitted, np.asarray(mapped)[:, 0], np.asarray(scanned)[:, 0]):
        np.testing.assert_allclose(have, want, atol=1e-6)


def test_bad_arguments_are_named():
    gates, k, v, state = inputs(4)
    unchecked = inspect.unwrap(decay_scan)  # the annotations would speak first
    with pytest.raises(ValueError, match=r"gate_logits has shape .* must be \(2, 4, 3, 4\)"):
        unchecked(gates[:, :3], k, v)
    with pytest.raises(ValueError, match="T at least 1"):
        unchecked(gates[:, :0], k[:, :0], v[:, :0])
    with pytest.raises(ValueError, match=r"initial_state\[1\]"):
        unchecked(gates, k, v, (state[0], state[1][:, :1]))
    with pytest.raises(ValueError, match="choose one of 'reference', 'xla'"):
        decay_scan(gates, k, v, implementation="cuda")
