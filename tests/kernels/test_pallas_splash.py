"""Dense prefill on TPUs: JAX's splash attention, interpreted, and through the TPU's compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ratjax_kernels import dense_prefill
from ratjax_kernels.dense_prefill import pallas_tpu
from tests.kernels import oracle
from tests.kernels.pallas_devices import THOROUGH, compiled, compiles_for_tpus, interpreted

# The interpreter is compiled anew for every shape.
pytestmark = pytest.mark.slow


def inputs(length, heads=2, kv_heads=1, channels=8, dtype=jnp.float32, batch=1):
    rng = np.random.default_rng(length)
    return tuple(
        oracle.normal(rng, (batch, length, n, channels), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )


def output_and_gradients(implementation, q, k, v, d_out):
    out, pull = jax.vjp(lambda *x: dense_prefill(*x, implementation), q, k, v)
    return (out, *pull(d_out))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_is_causal_attention(implementation, dtype):
    q, k, v, _ = inputs(37, 4, 2, dtype=dtype)
    have = oracle.run(dense_prefill, q, k, v, implementation=implementation)
    assert have.dtype == dtype
    oracle.assert_attention_close(have, *oracle.attend(q, k, v, lambda b, t, h: range(t + 1)))


# A short tile, and heads with keys of their own; three tiles, the last one ragged.
@pytest.mark.slow
@pytest.mark.parametrize(
    "length,kv_heads,dtype",
    [(5, 2, jnp.float32), (260, 1, jnp.bfloat16)],
)
def test_output_and_gradients(length, kv_heads, dtype, monkeypatch):
    monkeypatch.setattr(pallas_tpu, "_TILES", {128: 128})
    args = inputs(length, kv_heads=kv_heads, dtype=dtype)
    have = interpreted(functools.partial(output_and_gradients, "pallas_tpu"), *args)
    want = output_and_gradients("reference", *(x.astype(jnp.float32) for x in args))
    plain = output_and_gradients("xla", *args)
    for h, p, w in zip(have, plain, want, strict=True):
        assert h.dtype == dtype
        error, allowed = (np.abs(np.asarray(x, np.float64) - w).max() for x in (h, p))
        # float32: sums in another order. bfloat16: scaled queries are rounded once more than XLA's.
        assert error <= max(3 * allowed, 1e-5)


def test_its_forward_alone_is_the_same():
    q, k, v, _ = inputs(130)
    have = interpreted(lambda *x: dense_prefill(*x, "pallas_tpu"), q, k, v)
    np.testing.assert_allclose(have, dense_prefill(q, k, v, "reference"), atol=1e-5)


def test_under_shard_map_and_scan():
    """A step in a loop, on a mesh whose axes JAX follows."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    q, k, v, d_out = inputs(130)

    def twice(implementation, q, k, v):
        def layer(x, _):
            return dense_prefill(x, k, v, implementation), None

        return jax.lax.scan(layer, q, None, length=2)[0]

    def slopes(implementation, *args):
        inner = functools.partial(twice, implementation)
        run = jax.shard_map(inner, mesh=mesh, in_specs=rows, out_specs=rows)
        return jax.jit(lambda *x: jax.vjp(run, *x[:3])[1](x[3]))(*args)

    have = interpreted(functools.partial(slopes, "pallas_tpu"), q, k, v, d_out)
    for h, w in zip(have, slopes("reference", q, k, v, d_out), strict=True):
        np.testing.assert_allclose(h, w, atol=1e-5)


def test_what_it_cannot_serve():
    with pytest.raises(ValueError, match="serves head dims up to 256, not 264"):
        dense_prefill(*inputs(4, channels=264)[:3], "pallas_tpu")
    with pytest.raises(ValueError, match="serves bfloat16 and float32, not float16"):
        dense_prefill(*inputs(4, dtype=jnp.float16)[:3], "pallas_tpu")
    with pytest.raises(ValueError, match="implementation='cudnn' needs a CUDA device"):
        dense_prefill(*inputs(4)[:3], "cudnn")


def test_tiles_grow_with_the_sequence():
    row = 128 * 2
    assert [pallas_tpu._tile_of(n, row) for n in (1, 128, 300, 4096)] == [128, 128, 384, 1024]
    assert pallas_tpu._tile_of(1100, row) in (384, 512)  # padded to 2048 otherwise
    assert pallas_tpu._tile_of(4096, 256 * 4) == 512


@compiles_for_tpus
def test_compiles_for_tpus(chip):
    """Forward; forward and backward, also cut over four chips by batch and by heads."""
    program = """
        from ratjax_kernels import dense_prefill

        attend = lambda *x: dense_prefill(*x, implementation="pallas_tpu")

        def train(attend, q, k, v, d_out):
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(d_out)

        for length in (4096, 32768):
            x = array(1, length, 32, 128)
            report(lambda *a: train(attend, *a), x, x, x, x)
        report(attend, x, x, x)
    """
    more = """
        q, k = array(1, 4096, 8, 256, dtype=jnp.float32), array(1, 4096, 2, 256, dtype=jnp.float32)
        report(lambda *a: train(attend, *a), q, k, k, q)
        mesh = Mesh(mesh.devices.reshape(2, 2), ("data", "tensor"))
        spec = PartitionSpec("data", None, "tensor", None)
        cut = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec)
        x = array(2, 4096, 32, 128, sharding=NamedSharding(mesh, spec))
        report(lambda *a: train(cut, *a), x, x, x, x)
    """
    both, long_both, long_forward, *others = compiled(chip, program, thorough=more)
    found = [n for n, _ in (both, long_both, long_forward, *others)]
    assert found == [3, 3, 1] + [3, 3] * (chip == THOROUGH)
    # Nothing the size of the scores (1 GiB at T = 4096 in bfloat16) is ever held.
    assert both[1] < 2**28 and long_forward[1] < 2**30 and long_both[1] < 2**31
