"""`dense_decode` and `append` as Triton kernels, on a GPU or in Triton's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import append, dense_decode
from tests.kernels import devices, oracle

SHAPES = [(1, 1, 16, 2, 2), (37, 2, 40, 6, 2), (150, 1, 128, 64, 1)]
if devices.ON_GPU:
    SHAPES += [(63, 2, 256, 4, 4), (4097, 3, 128, 4, 4), (4097, 2, 128, 8, 2), (700, 1, 64, 40, 1)]


@pytest.fixture(autouse=True)
def short_splits(monkeypatch):
    """Several splits on small shapes."""
    from ratjax_kernels.dense_decode import triton

    monkeypatch.setattr(triton, "_LEAST_CHUNK", 32)


def inputs(slots, batch, channels, heads, kv_heads, dtype):
    rng = np.random.default_rng(slots)
    q = oracle.normal(rng, (batch, 1, heads, channels), dtype)
    k, v = (
        oracle.normal(rng, (batch, slots, kv_heads, channels), dtype, scale) for scale in (2, 1)
    )
    lengths = jnp.asarray([slots, max(slots // 2, 1), 0][:batch], jnp.int32)
    return q, k, v, lengths


@devices.runs_triton
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reads_what_is_filled_and_not_masked(shape, dtype, masked):
    q, k, v, lengths = inputs(*shape, dtype)
    read = np.arange(k.shape[1])[None] < np.asarray(lengths)[:, None]
    mask = None
    if masked:
        mask = jnp.asarray(np.random.default_rng(1).random(read.shape) < 0.7)
        read = read & np.asarray(mask)
    poisoned = [oracle.poisoned(x, read) for x in (k, v)]
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    want = dense_decode(*wide, lengths, "reference", mask=mask)
    plain = dense_decode(q, k, v, lengths, "xla", mask=mask)
    have = dense_decode(q, *poisoned, lengths, "triton", mask=mask)
    assert have.dtype == dtype
    devices.assert_rounded_like(have, plain, want)
    again = dense_decode(q, *poisoned, lengths, "triton", mask=mask)
    np.testing.assert_array_equal(have, again)


@devices.runs_triton
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_reads_one_layer_of_a_stack(kv_heads):
    q, k, v, lengths = inputs(40, 2, 16, 4, kv_heads, jnp.float32)
    nothing = jnp.full_like(k, jnp.nan)
    stacks = [jnp.stack([nothing, x, nothing]) for x in (k, v)]
    have = jax.jit(lambda layer: dense_decode(q, *stacks, lengths, "triton", layer=layer))(
        jnp.int32(1)
    )
    np.testing.assert_array_equal(have, dense_decode(q, k, v, lengths, "triton"))


@devices.runs_triton
def test_vmap_and_scan():
    q, k, v, lengths = inputs(40, 2, 16, 4, 2, jnp.float32)
    stacks = [jnp.stack([x, 2 * x]) for x in (k, v)]
    layers = jnp.arange(2, dtype=jnp.int32)

    def one(layer):
        return dense_decode(q, *stacks, lengths, "triton", layer=layer)

    want = [one(layer) for layer in layers]
    np.testing.assert_array_equal(jax.vmap(one)(layers), want)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, i: (c, one(i)), 0, layers)[1], want)
    mapped = jax.vmap(lambda q, k, v: dense_decode(q, k, v, lengths, "triton"))
    queries = jnp.stack([q, 3 * q])
    want = [dense_decode(queries[i], stacks[0][i], stacks[1][i], lengths, "triton") for i in (0, 1)]
    np.testing.assert_array_equal(mapped(queries, *stacks), want)


@devices.runs_triton
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_append_is_the_scatters(paged, stacked):
    rng = np.random.default_rng(0)
    lengths = jnp.asarray([0, 5, 9, 4], jnp.int32)  # the third sequence is full
    leading = (3, 4) if stacked else (4,)
    k, v = (oracle.normal(rng, (*leading, 9, 2, 20)) for _ in range(2))
    bounds = [oracle.normal(rng, (*leading, 3, 2, 20), scale=s) for s in (0.1, 0.1)]
    new = [oracle.normal(rng, (4, 1, 2, 20)) for _ in range(2)]
    layer = jnp.int32(2) if stacked else None
    have, want = (
        append(k, v, lengths, *new, tuple(bounds) if paged else None, 4, name, layer=layer)
        for name in ("triton", "xla")
    )
    assert len(have) == (4 if paged else 2)
    for h, w in zip(have, want, strict=True):
        np.testing.assert_array_equal(h, w)


@devices.runs_triton
def test_append_under_vmap():
    rng = np.random.default_rng(0)
    k = oracle.normal(rng, (2, 3, 5, 1, 16))
    new = oracle.normal(rng, (2, 3, 1, 1, 16))
    lengths = jnp.asarray([[0, 2, 4], [1, 5, 3]], jnp.int32)
    have, want = (
        jax.vmap(lambda k, n, i: append(k, -k, i, n, -n, implementation=name))(k, new, lengths)  # noqa: B023
        for name in ("triton", "reference")
    )
    for h, w in zip(have, want, strict=True):
        np.testing.assert_array_equal(h, w)


@devices.compiles_triton
@pytest.mark.parametrize("kv_heads", [32, 8])
@pytest.mark.parametrize("batch,slots", [(16, 32768), (4, 131072), (1, 32768)])
def test_compiles_at_production_shapes(kv_heads, batch, slots, capability, capsys):
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    cache = array(2, batch, slots, kv_heads, 128)
    new, lengths = array(batch, 1, kv_heads, 128), array(batch, dtype=jnp.int32)

    def step(q, k, v, lengths, new, layer):
        k, v = append(k, v, lengths, new, new, implementation="triton", layer=layer)
        return dense_decode(q, k, v, lengths + 1, "triton", layer=layer)

    used = devices.check_compiles(
        capsys, capability, step, array(batch, 1, 32, 128), cache, cache, lengths, new,
        array(dtype=jnp.int32),
    )  # fmt: skip
    # Tiles were chosen on sm_90; a few spilled registers elsewhere cost nothing beside memory.
    assert all(usage.spilled <= (0 if capability == 90 else 64) for _, usage in used)


@devices.compiles_triton
@pytest.mark.parametrize("channels,heads,dtype", [
    (64, 128, jnp.bfloat16), (128, 128, jnp.bfloat16), (256, 64, jnp.bfloat16),
    (256, 32, jnp.float32),
])  # fmt: skip
def test_many_heads_that_share_a_key_fit(channels, heads, dtype, capability, capsys):
    cache = jax.ShapeDtypeStruct((2, 8192, 1, channels), dtype)
    q = jax.ShapeDtypeStruct((2, 1, heads, channels), dtype)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)

    def step(q, k, v, lengths):
        return dense_decode(q, k, v, lengths, "triton")

    [(_, usage)] = devices.check_compiles(capsys, capability, step, q, cache, cache, lengths)
    assert usage.shared <= (163 if capability == 80 else 227) * 1024


@pytest.mark.skipif(not devices.HAS_TRITON, reason="needs triton")
def test_what_is_not_served(monkeypatch):
    from ratjax_kernels.dense_decode import triton

    def problem(heads, kv_heads, channels, dtype=jnp.float32):
        q = jnp.zeros((1, 1, heads, channels), dtype)
        k = jnp.zeros((1, 4, kv_heads, channels))
        return triton.limits_of_dense_decode(q, k, k, None, None, None)

    monkeypatch.setattr(triton, "device_problem", lambda *arrays: None)
    assert problem(64, 1, 128) is None and problem(512, 8, 128) is None
    assert problem(65, 1, 128) == "serves 64 query heads a key head at most, not 65"
    assert problem(4, 4, 512) is None and problem(4, 4, 64, jnp.bfloat16) is None
    mixed = "serves queries in the keys' float32 where heads share keys, not bfloat16"
    assert problem(4, 2, 64, jnp.bfloat16) == mixed
    monkeypatch.setattr(triton, "capability", lambda: "8.9")
    assert problem(64, 1, 128) == "serves 32 query heads a key head at most, not 64"
