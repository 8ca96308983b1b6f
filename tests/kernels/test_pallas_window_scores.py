"""SnapKV's scoring kernel for TPUs: in Pallas' TPU interpreter, and through the TPU's compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import window_scores
from ratjax_kernels.window_scores import pallas_tpu
from tests.kernels import oracle
from tests.kernels.devices import assert_rounded_like
from tests.kernels.pallas_devices import compiled, compiles_for_tpus, interpreted

# The interpreter is compiled anew for every shape.
pytestmark = pytest.mark.slow

run = functools.partial(window_scores, implementation="pallas_tpu")


# Prompts longer and shorter than the window, heads alone and in groups of three.
@pytest.mark.parametrize(
    "slots,window,heads,kv_heads,channels,dtype",
    [(41, 5, 2, 2, 24, jnp.float32), (48, 16, 6, 2, 128, jnp.bfloat16)],
)
def test_votes(slots, window, heads, kv_heads, channels, dtype, monkeypatch):
    monkeypatch.setattr(pallas_tpu, "_KEYS", 16)
    rng = np.random.default_rng(slots)
    q = oracle.normal(rng, (4, window, heads, channels), dtype)
    k = oracle.normal(rng, (4, slots, kv_heads, channels), dtype, 2)
    lengths = jnp.asarray([slots, slots // 2, 3, 0], jnp.int32)
    want = window_scores(*(x.astype(jnp.float32) for x in (q, k)), lengths, "reference")
    plain = window_scores(q, k, lengths, "xla")
    k = oracle.poisoned(k, np.arange(slots) < np.asarray(lengths)[:, None])
    counts = np.asarray(lengths)[:, None] - window + np.arange(window) >= 0
    have = np.asarray(interpreted(run, oracle.poisoned(q, counts), k, lengths))
    assert_rounded_like(have, plain, want)
    for row, length in zip(have, np.asarray(lengths), strict=True):
        np.testing.assert_array_equal(row[:, length:], 0)
        np.testing.assert_allclose(row.sum(axis=1), min(window, length), rtol=1e-5)


def test_works_under_vmap():
    rng = np.random.default_rng(0)
    q, k = (oracle.normal(rng, (2, size, 2, 8)) for size in (3, 16))
    lengths = jnp.asarray([16, 7], jnp.int32)
    have = interpreted(jax.vmap(run), q[:, None], k[:, None], lengths[:, None])
    np.testing.assert_allclose(have[:, 0], window_scores(q, k, lengths, "reference"), atol=1e-6)


def test_limits():
    q, k, lengths = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((1, 4096, 8, 128), jnp.float32), ((1, 8192, 1, 128), jnp.float32), ((1,), jnp.int32),
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"window_scores: .* needs .* MiB of VMEM"):
        jax.eval_shape(run, q, k, lengths)


PROGRAM = """
    from ratjax_kernels import window_scores

    def votes(q, k, lengths):
        return window_scores(q, jnp.swapaxes(k, 1, 2), lengths, "pallas_tpu")

    for slots in (4096, 32768):
        for heads in (32, 8):
            report(votes, array(2, 64, 32, 128), array(2, heads, slots, 128), integers(2))
    report(votes, array(2, 33, 6, 64), array(2, 2, 1001, 64), integers(2))

    from functools import partial
    apart = NamedSharding(mesh, PartitionSpec(None, None, "x"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    heads = PartitionSpec(None, None, "x"), PartitionSpec(None, "x"), PartitionSpec()
    spread = jax.shard_map(votes, mesh=mesh, in_specs=heads, out_specs=PartitionSpec(None, "x"))
    report(
        spread, array(2, 64, 32, 128, sharding=apart),
        array(2, 8, 4096, 128, sharding=NamedSharding(mesh, PartitionSpec(None, "x"))),
        integers(2, sharding=everywhere),
    )
"""


@compiles_for_tpus
def test_compiles_for_tpus(chip):
    reports = compiled(chip, PROGRAM)
    assert [kernels for kernels, _ in reports] == [1] * 6
    # The scores, 8 MiB at most, are laid out anew; never the keys, 32 MiB at least.
    assert max(temporary for _, temporary in reports) < 12 * 2**20
