"""Dilated attention on TPUs: its kernels interpreted, and through the TPU's compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ratjax_kernels import strided_prefill
from ratjax_kernels.strided_prefill import pallas_cut, pallas_kernels
from tests.kernels import oracle
from tests.kernels.pallas_devices import THOROUGH, compiled, compiles_for_tpus, interpreted

# The interpreter is compiled anew for every shape.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of queries and of far keys in a short sequence."""
    monkeypatch.setattr(pallas_cut, "_TILES", (128,))
    monkeypatch.setattr(pallas_cut, "_AT_ONCE", 16)


def inputs(length, heads=2, kv_heads=1, channels=8, dtype=jnp.float32, batch=1):
    rng = np.random.default_rng(length)
    return tuple(
        oracle.normal(rng, (batch, length, n, channels), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )


def run(q, k, v, pattern, implementation="pallas_tpu"):
    return strided_prefill(q, k, v, *pattern, implementation)


@functools.partial(jax.jit, static_argnums=(0, 1))
def output_and_gradients(implementation, pattern, q, k, v, d_out):
    out, pull = jax.vjp(lambda *x: run(*x, pattern, implementation), q, k, v)
    return (out, *pull(d_out))


def check(pattern, *args):
    have = interpreted(functools.partial(output_and_gradients, "pallas_tpu", pattern), *args)
    want = output_and_gradients("reference", pattern, *(x.astype(jnp.float32) for x in args))
    plain = output_and_gradients("xla", pattern, *args)
    for h, p, w in zip(have, plain, want, strict=True):
        assert h.dtype == args[0].dtype
        error, allowed = (np.abs(np.asarray(x, np.float64) - w).max() for x in (h, p))
        # float32: other orders of summing. bfloat16: gradients of strided keys round twice, as sums
        # of a near and a far part.
        assert error <= max(2 * allowed, 1e-5)


# dilation, local, initial
@pytest.mark.parametrize(
    "pattern",
    [(8, 20, 3), (64, 0, 5), (-1, 7, 2), (-1, 0, 0), (400, 3, 0)],
)
def test_every_pattern(pattern):
    # Two tiles of queries, the last one ragged; two query heads share keys.
    check(pattern, *inputs(200))


@pytest.mark.parametrize("length,kv_heads", [(1, 1), (200, 2)])
def test_odd_lengths_and_bfloat16(length, kv_heads):
    check((16, 0, 4), *inputs(length, kv_heads=kv_heads, dtype=jnp.bfloat16))


def test_wide_windows(monkeypatch):
    """Windows that are walked over in a loop, whole stretches at a time."""
    monkeypatch.setattr(pallas_cut, "_WIDE", 16)
    monkeypatch.setattr(pallas_kernels, "STRETCH", 128)
    check((16, 200, 4), *inputs(260))


def test_dilation_one_is_dense():
    q, k, v, _ = inputs(130)
    have = interpreted(lambda *x: run(*x, (1, 3, 2)), q, k, v)
    np.testing.assert_allclose(have, run(q, k, v, (1, 3, 2), "reference"), atol=1e-5)


def test_equal_scores_are_an_average():
    """Keys that are all alike: each query takes the plain mean of what it sees."""
    length, pattern = 150, (8, 0, 2)
    v = inputs(length, 1)[2]
    alike = jnp.ones((1, length, 1, 8))
    have = interpreted(lambda *x: run(*x, pattern), alike, alike, v)
    for i in (0, 1, 7, 8, 127, 128, 149):
        seen = [j for j in range(i + 1) if (j + 1) % 8 == 0 or j == i or j < 2]
        np.testing.assert_allclose(have[0, i, 0], v[0, seen, 0].mean(axis=0), atol=1e-6)


def test_what_stands_behind_a_tile_is_not_read():
    """Far keys are skipped a tile of 16 at a time: here, those of 128 positions."""
    q, k, v, _ = inputs(300, 1)
    keep = np.arange(300)[None] < 256
    poisoned = [oracle.poisoned(x, keep) for x in (q, k, v)]
    have = interpreted(lambda *x: run(*x, (8, 0, 0)), *poisoned)
    want = run(q, k, v, (8, 0, 0), "reference")
    np.testing.assert_allclose(have[:, :256], want[:, :256], atol=1e-5)


def test_batching_scanning_and_meshes():
    """Gradients under vmap in a scan, on a mesh whose axes JAX follows."""
    q, k, v, d_out = inputs(130, batch=2)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")

    def slope(implementation, q, k, v, d_out):
        attend = functools.partial(run, pattern=(16, 3, 1), implementation=implementation)
        attend = jax.shard_map(attend, mesh=mesh, in_specs=rows, out_specs=rows)
        return jax.vjp(attend, q, k, v)[1](d_out)

    def mapped(carry, args):
        return carry, jax.vmap(functools.partial(slope, "pallas_tpu"))(*args)

    single = tuple(x[None, :, None] for x in (q, k, v, d_out))
    have = interpreted(lambda *args: jax.lax.scan(mapped, 0, args)[1], *single)
    for h, w in zip(have, slope("reference", q, k, v, d_out), strict=True):
        np.testing.assert_allclose(h[0, :, 0], w, atol=1e-5)


def test_what_it_cannot_serve():
    x = jax.ShapeDtypeStruct((1, 2**18, 1, 128), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"needs \d+\.\d MiB of VMEM for its blocks, of 48"):
        jax.eval_shape(lambda x: run(x, x, x, (2, 0, 0)), x)
    with pytest.raises(ValueError, match="not float16"):
        run(*inputs(4, dtype=jnp.float16)[:3], (4, 0, 0))


TRAINING = """
    from ratjax_kernels import strided_prefill

    def attend(*pattern):
        return lambda q, k, v: strided_prefill(q, k, v, *pattern, "pallas_tpu")

    def train(attend, *args):
        out, pull = jax.vjp(attend, *args[:3])
        return out, pull(args[3])
"""


@compiles_for_tpus
def test_compiles_for_tpus(chip):
    """Active recurrence learning's pattern, and inference's with a window, as training steps."""
    program = """
        x = array(1, 4096, 32, 128)
        report(lambda *a: train(attend(64, 0, 0), *a), x, x, x, x)
        report(lambda *a: train(attend(16, 256, 4), *a), x, x, x, x)
    """
    more = """
        grouped = array(1, 4096, 8, 128)
        report(lambda *a: train(attend(64, 0, 0), *a), x, grouped, grouped, x)
        mesh = Mesh(mesh.devices.reshape(2, 2), ("data", "tensor"))
        spec = PartitionSpec("data", None, "tensor", None)
        cut = jax.shard_map(attend(64, 0, 0), mesh=mesh, in_specs=spec, out_specs=spec)
        x = array(2, 4096, 32, 128, sharding=NamedSharding(mesh, spec))
        report(lambda *a: train(cut, *a), x, x, x, x)
    """
    own, window, *others = compiled(chip, TRAINING, program, thorough=more)
    assert [n for n, _ in (own, window, *others)] == [2, 3] + [2, 2] * (chip == THOROUGH)
    assert own[1] < largest(4096)


@compiles_for_tpus
def test_long_contexts_compile(chip):
    program = """
        x = array(1, 32768, 32, 128)
        report(lambda *a: train(attend(64, 0, 0), *a), x, x, x, x)
        report(attend(16, 256, 4), x, x, x)
    """
    own, forward = compiled(chip, TRAINING, program)
    assert (own[0], forward[0]) == (2, 1)
    assert own[1] < largest(32768)


def largest(length):
    """Beside arguments and results: the residuals, and at most their copies in another order."""
    return 5 * length * 32 * 128 * 2
