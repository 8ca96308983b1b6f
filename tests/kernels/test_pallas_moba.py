"""MoBA prefill on TPUs: its kernels interpreted, and through the TPU's compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ratjax_kernels import block_means, block_prefill, block_select
from ratjax_kernels.block_prefill import pallas_lists, pallas_tpu
from tests.kernels import oracle
from tests.kernels.pallas_devices import THOROUGH, compiled, compiles_for_tpus, interpreted

# The interpreter is compiled anew for every shape.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Several steps in a short list."""
    monkeypatch.setattr(pallas_tpu, "_KEYS", 64)


def inputs(length, heads=2, kv_heads=1, channels=8, dtype=jnp.float32, batch=1):
    rng = np.random.default_rng(length)
    return tuple(
        oracle.normal(rng, (batch, length, n, channels), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )


def random_blocks(length, block_size, count, heads=2, batch=1):
    """Distinct past blocks in any order, some -1; sometimes one that has not begun, or twice."""
    rng = np.random.default_rng(length)
    ids = np.full((batch, heads, length, count), -1, np.int32)
    for b, h, i in np.ndindex(ids.shape[:3]):
        some = rng.permutation(i // block_size + 1)[:count]
        ids[b, h, i, : len(some)] = some
        rng.shuffle(ids[b, h, i])
    ids[:, :, ::7, 0] = ids[:, :, ::7, -1]
    ids[:, :, ::5, 0] = length // block_size
    return jnp.asarray(ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def output_and_gradients(implementation, block_size, q, k, v, d_out, ids):
    def attend(*x):
        return block_prefill(*x, ids, block_size, implementation)

    out, pull = jax.vjp(attend, q, k, v)
    return (out, *pull(d_out))


def check(block_size, ids, *args):
    run = functools.partial(output_and_gradients, "pallas_tpu", block_size)
    have = interpreted(run, *args, ids)
    exact = (x.astype(jnp.float32) for x in args)
    want = output_and_gradients("reference", block_size, *exact, ids)
    plain = output_and_gradients("xla", block_size, *args, ids)
    for h, p, w in zip(have, plain, want, strict=True):
        assert h.dtype == args[0].dtype
        error, allowed = (np.abs(np.asarray(x, np.float64) - w).max() for x in (h, p))
        # The same roundings as XLA's, in another order.
        assert error <= max(2 * allowed, 1e-5)


# Whole registers, less than one, and not a whole number of them; several words of bits.
@pytest.mark.parametrize(
    "length,block_size,count,kv_heads,dtype",
    [
        (200, 16, 3, 1, jnp.float32),
        pytest.param(140, 4, 5, 2, jnp.bfloat16, marks=pytest.mark.slow),
        (130, 24, 2, 1, jnp.bfloat16),
        (1, 16, 1, 1, jnp.float32),
    ],
)
def test_output_and_gradients(length, block_size, count, kv_heads, dtype):
    ids = random_blocks(length, block_size, count)
    check(block_size, ids, *inputs(length, kv_heads=kv_heads, dtype=dtype))


def test_selection_and_attention_agree_with_the_reference():
    """Ties go to the lower index, and the own block is among the listed."""
    q, k, v, _ = inputs(150)
    k = k.at[:, 32:48].set(k[:, 16:32])  # two blocks with one mean
    ids = {name: block_select(q, block_means(k, 16, name), 16, 3, True, name)
           for name in ("reference", "xla")}  # fmt: skip
    np.testing.assert_array_equal(ids["xla"], ids["reference"])
    have = interpreted(lambda *x: block_prefill(*x, 16, "pallas_tpu"), q, k, v, ids["xla"])
    np.testing.assert_allclose(have, block_prefill(q, k, v, ids["xla"], 16, "reference"), atol=1e-5)


def test_what_no_query_lists_has_no_influence():
    """Unlisted blocks may hold NaN; a query, or a whole tile, without blocks gives zero."""
    q, k, v, d_out = inputs(300)
    ids = random_blocks(300, 16, 3)
    # Block 9 is listed by one query too early, and begins with the tile behind it.
    unlisted = [1, 9, 12, 17]
    ids = jnp.where(jnp.isin(ids, jnp.asarray(unlisted)), -1, ids).at[:, :, 7, 0].set(9)
    ids = ids.at[:, :, 5].set(-1).at[:, :, 256:].set(-1)
    keep = ~np.isin(np.arange(300)[None] // 16, unlisted)
    poisoned = (oracle.poisoned(x, keep) for x in (k, v))
    run = functools.partial(output_and_gradients, "pallas_tpu", 16)
    have = interpreted(run, q, *poisoned, d_out, ids)
    want = output_and_gradients("reference", 16, q, k, v, d_out, ids)
    for h, w in zip(have, want, strict=True):
        np.testing.assert_allclose(h, w, atol=1e-5)
    for x in (np.asarray(have[0]), np.asarray(have[1])):
        np.testing.assert_array_equal(x[:, 5], 0)
        np.testing.assert_array_equal(x[:, 256:], 0)
    assert np.abs(have[0][:, 4]).min() > 0


def test_tiles_list_what_their_queries_list():
    ids = np.asarray(random_blocks(260, 4, 3, heads=1))
    blocks = 65
    padded = np.pad(ids, [(0, 0), (0, 0), (0, 384 - 260), (0, 0)], constant_values=-1)
    bits = pallas_lists.bits_of(jnp.asarray(padded), blocks, 4)
    lists = np.asarray(pallas_lists.lists_of(bits, blocks, 128, 8))[0, 0, :, 0]
    for tile in range(3):
        wanted = {p for t in range(128 * tile, min(128 * tile + 128, 260))
                  for p in ids[0, 0, t] if 0 <= p <= t // 4}  # fmt: skip
        count = lists[tile, 0]
        assert list(lists[tile, 1 : 1 + count]) == sorted(wanted)
        assert (lists[tile, 1 + count :] == max(wanted)).all() and lists.shape[1] == 1 + 72


def test_batching_scanning_and_meshes():
    """Gradients under vmap in a scan, on a mesh whose axes JAX follows."""
    q, k, v, d_out = inputs(130, batch=2)
    ids = random_blocks(130, 16, 2, batch=2)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")

    def slope(implementation, *args):
        run = functools.partial(output_and_gradients, implementation, 16)
        return jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows)(*args)

    def mapped(carry, args):
        return carry, jax.vmap(functools.partial(slope, "pallas_tpu"))(*args)

    single = tuple(x[None, :, None] for x in (q, k, v, d_out, ids))
    have = interpreted(lambda *args: jax.lax.scan(mapped, 0, args)[1], *single)
    for h, w in zip(have, slope("reference", q, k, v, d_out, ids), strict=True):
        np.testing.assert_allclose(h[0, :, 0], w, atol=1e-5)


def test_prompts_may_be_longer_than_gradients_reach(monkeypatch, caplog):
    """Where only forward fits, the gradient is XLA's, and one line says so."""
    q, k, v, d_out = inputs(150)
    forward = pallas_tpu._Cut.of(q, k, q.dtype, 16).forward()
    monkeypatch.setattr(pallas_tpu, "_VMEM", forward.vmem_bytes())
    ids = random_blocks(150, 16, 2)
    jax.clear_caches()
    have = interpreted(
        functools.partial(output_and_gradients, "pallas_tpu", 16), q, k, v, d_out, ids
    )
    want = output_and_gradients("reference", 16, q, k, v, d_out, ids)
    for h, w in zip(have, want, strict=True):
        np.testing.assert_allclose(h, w, atol=1e-5)
    assert "block_prefill: pallas_tpu's gradient needs" in caplog.text
    jax.clear_caches()


def test_what_it_cannot_serve():
    x = jax.ShapeDtypeStruct((1, 2**17, 1, 128), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 1, 2**17, 2), jnp.int32)
    with pytest.raises(ValueError, match=r"needs \d+\.\d MiB of VMEM for its blocks, of 56"):
        jax.eval_shape(lambda x, ids: block_prefill(x, x, x, ids, 64, "pallas_tpu"), x, ids)
    q, k, v, _ = inputs(16, dtype=jnp.float16)
    with pytest.raises(ValueError, match="not float16"):
        block_prefill(q, k, v, random_blocks(16, 16, 1), 16, "pallas_tpu")


def program(length, block_size, count):
    """A forward pass and a training step."""
    return f"""
        from ratjax_kernels import block_prefill

        def attend(q, k, v, ids):
            return block_prefill(q, k, v, ids, {block_size}, "pallas_tpu")

        def train(attend, q, k, v, ids, d_out):
            out, pull = jax.vjp(lambda *x: attend(*x, ids), q, k, v)
            return out, pull(d_out)

        x, ids = array(1, {length}, 32, 128), integers(1, 32, {length}, {count})
        report(attend, x, x, x, ids)
        report(lambda *a: train(attend, *a), x, x, x, ids, x)
    """


MORE = """
        few = array(1, 4096, 8, 128)
        report(lambda *a: train(attend, *a), x, few, few, ids, x)
        mesh = Mesh(mesh.devices.reshape(2, 2), ("data", "tensor"))
        rows = PartitionSpec("data", None, "tensor", None)
        lists = PartitionSpec("data", "tensor", None, None)
        specs = (rows, rows, rows, lists)
        cut = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=rows)
        x = array(2, 4096, 32, 128, sharding=NamedSharding(mesh, rows))
        ids = integers(2, 32, 4096, 16, sharding=NamedSharding(mesh, lists))
        report(lambda *a: train(cut, *a), x, x, x, ids, x)
"""
SCORES = 2**30  # bytes, in bfloat16 at T = 4096; 64 times that at 32768


@compiles_for_tpus
def test_compiles_for_tpus(chip):
    """The paper's constants at T = 4096."""
    forward, both, *others = compiled(chip, program(4096, 64, 16), thorough=MORE)
    assert [n for n, _ in (forward, both, *others)] == [1, 2] + [2, 2] * (chip == THOROUGH)
    assert both[1] < SCORES / 4


@compiles_for_tpus
def test_long_contexts_compile(chip):
    """The same budgets at 32768."""
    forward, both = compiled(chip, program(32768, 512, 8))
    assert (forward[0], both[0]) == (1, 2)
    assert both[1] < 64 * SCORES / 32
