"""The memory's TPU kernels: in Pallas' TPU interpreter, and through the TPU's compiler."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import decay_scan
from ratjax_kernels.pallas_call import interpreting
from ratjax_kernels.scan import pallas_tpu
from tests.kernels import oracle


def outputs_and_gradients(implementation, arrays, state, cotangents):
    out, pull = jax.vjp(
        lambda arrays, state: decay_scan(*arrays, state, True, implementation), arrays, state
    )
    return jax.tree.leaves((out, pull(cotangents)))


# Heads of 128 channels as they lie; others flattened, alone in a register or over several.
@pytest.mark.parametrize(
    "length,heads,channels,dtype",
    [
        (20, 8, 128, jnp.float32),
        (20, 3, 40, jnp.float32),
        (1, 1, 8, jnp.float32),
        (24, 9, 128, jnp.bfloat16),
    ],
)
def test_outputs_and_all_gradients(length, heads, channels, dtype, monkeypatch):
    monkeypatch.setattr(pallas_tpu, "_TILE", 16 * 8 * 128)  # several tiles in a short sequence
    rng = np.random.default_rng(length)
    wide = [oracle.normal(rng, (2, length, heads, channels), dtype) for _ in range(5)]
    narrow = [oracle.normal(rng, (2, heads, channels)) for _ in range(4)]
    args = tuple(wide[:3]), tuple(narrow[:2]), (tuple(wide[3:]), tuple(narrow[2:]))
    with interpreting():
        have = outputs_and_gradients("pallas_tpu", *args)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    want = outputs_and_gradients("reference", *exact)
    plain = outputs_and_gradients("xla", *args)
    for h, p, w in zip(have, plain, want, strict=True):
        error, allowed = (np.abs(np.asarray(x, np.float64) - w).max() for x in (h, p))
        assert error <= max(2 * allowed, 1e-5)


def test_saturated_gates():
    rng = np.random.default_rng(0)
    gates, k, v = (oracle.normal(rng, (1, 20, 1, 128)) for _ in range(3))
    gates = gates.at[:, 5].set(jnp.inf).at[:, 9].set(-jnp.inf).at[:, 15:].set(jnp.inf)

    def gradients(implementation):
        def loss(*arrays):
            return sum((x**2).sum() for x in decay_scan(*arrays, implementation=implementation))

        return jax.grad(loss, argnums=(0, 1, 2))(gates, k, v)

    with interpreting():
        have = gradients("pallas_tpu")
    for h, w in zip(have, gradients("reference"), strict=True):
        np.testing.assert_allclose(h, w, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(have[0][:, [5, 9, 15, 19]], 0)


PROGRAM = """
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from ratjax_kernels import decay_scan

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name={name!r}, chip_config_name={chip!r},
        chips_per_host_bounds={bounds}, num_slices=1, wrap=(False,) * 3,
    )
    everywhere = NamedSharding(Mesh(topology.devices[:1], ("x",)), PartitionSpec())
    array = jax.ShapeDtypeStruct((1, {length}, 32, 128), jnp.bfloat16, sharding=everywhere)

    def train(gates, k, v, dk, dv):
        scan = lambda *x: decay_scan(*x, implementation="pallas_tpu")
        out, pull = jax.vjp(scan, gates, k, v)
        return out, pull((dk, dv))

    compiled = jax.jit(train).lower(*[array] * 5).compile()
    kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    print("RESULT", kernels, compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("length", [4096, 32768])
@pytest.mark.parametrize(
    "name,chip,bounds",
    [
        ("v5e:2x2", "default", (2, 2, 1)),
        ("v5:2x2x1", "megacore", (2, 2, 1)),
        ("v6e:2x2", "default", (2, 2, 1)),
    ],
)
def test_compiles_for_tpus(name, chip, bounds, length):
    program = textwrap.dedent(PROGRAM).format(name=name, chip=chip, bounds=bounds, length=length)
    # A process of its own: libtpu reads its environment once, and only one process may hold it.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels, temporary = map(int, done.stdout.split("RESULT")[1].split())
    assert kernels == 2
    # Nothing is laid out anew: beside arguments and results there are the states entering tiles.
    assert temporary < 32 * 2**20
