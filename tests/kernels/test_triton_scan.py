"""The CUDA kernels of the memory: compiled ahead anywhere, run on a GPU against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import decay_scan
from tests.kernels import oracle

triton = pytest.importorskip("triton")
needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA device")

POINTERS = {
    "forward_kernel": "x x x f f x x f f i",
    "backward_kernel": "x x x f f i x x f f x x x f f i",
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", sorted(POINTERS))
def test_compiles_to_machine_code(name, capability, capsys):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ratjax_kernels.scan import triton_kernels

    kernel = getattr(triton_kernels, name)
    types = {"x": "*bf16", "f": "*fp32", "i": "*i32"}
    pointers = POINTERS[name].split()
    shape = {"LENGTH": 4097, "CHANNELS": 4096, "LANES": 128, "GROUPS": 16}
    constants = shape | triton_kernels.TILE
    names = kernel.arg_names
    signature = dict(zip(names, (types[p] for p in pointers), strict=False))
    signature |= dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(names.index(key),): value for key, value in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in range(len(pointers))},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": triton_kernels.WARPS, "num_stages": 1},
    )
    assert len(compiled.asm["cubin"]) > 0
    with capsys.disabled():
        print(f"\n{name} sm_{capability}: shared {compiled.metadata.shared} bytes")


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


def error(have, want):
    return np.sqrt(np.mean((have - want) ** 2)) / np.sqrt(np.mean(want**2))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "length,batch,heads,channels", [(1, 2, 2, 16), (63, 2, 3, 40), (65, 1, 1, 8), (4097, 2, 4, 128)]
)
def test_outputs_and_all_gradients(dtype, length, batch, heads, channels):
    args = inputs(length, dtype, batch, heads, channels)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    want = outputs_and_gradients("reference", *wide)
    plain = outputs_and_gradients("xla", *args)
    have = outputs_and_gradients("triton", *args)
    again = outputs_and_gradients("triton", *args)
    for h, p, w, a in zip(have, plain, want, again, strict=True):
        # At most twice what plain JAX loses in this dtype; 1e-6 where that is (nearly) nothing.
        assert error(h, w) <= max(2 * error(p, w), 1e-6)
        np.testing.assert_array_equal(h, a)


@pytest.mark.gpu
@needs_gpu
def test_saturated_gates_and_vmap():
    (gates, k, v), state, _ = inputs(300, jnp.float32, 2, 2, 32)
    gates = gates.at[:, 100].set(jnp.inf).at[:, 200].set(-jnp.inf).at[:, 250:].set(jnp.inf)

    def loss(gates, k, v, implementation):
        (k_mem, v_mem), last = decay_scan(gates, k, v, state, True, implementation)
        return (k_mem**2).sum() + (v_mem**3).sum() + last[0].sum()

    grads = jax.grad(loss, argnums=(0, 1, 2))(gates, k, v, "triton")
    want = jax.grad(loss, argnums=(0, 1, 2))(gates, k, v, "reference")
    for h, w in zip(grads, want, strict=True):
        np.testing.assert_allclose(h, w, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(grads[0][:, [100, 200, 250, 299]], 0)
    closed = decay_scan(jnp.full_like(gates, -jnp.inf), k, v, implementation="triton")[0]
    np.testing.assert_array_equal(closed, k)
    mapped = jax.vmap(lambda *x: decay_scan(*x, implementation="triton")[0])(
        gates[:, None], k[:, None], v[:, None]
    )
    np.testing.assert_array_equal(mapped[:, 0], decay_scan(gates, k, v, implementation="triton")[0])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("groups", [8, 16])
def test_tiles_of_wide_models(groups, monkeypatch):
    from ratjax_kernels.scan import triton as kernels

    monkeypatch.setattr(kernels, "groups_of_tile", lambda batch, channels: groups)
    args = inputs(700, jnp.bfloat16, 2, 3, 40)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    want = outputs_and_gradients("reference", *wide)
    plain = outputs_and_gradients("xla", *args)
    have = outputs_and_gradients("triton", *args)
    for h, p, w in zip(have, plain, want, strict=True):
        assert error(h, w) <= max(2 * error(p, w), 1e-6)


@pytest.mark.gpu
@needs_gpu
def test_is_the_default_on_a_gpu():
    (gates, k, v), _, _ = inputs(64, jnp.bfloat16, 1, 1, 32)

    def program(implementation):
        run = functools.partial(decay_scan, implementation=implementation)
        return jax.jit(run).lower(gates, k, v).as_text()

    assert "custom_call" in program(None)
    assert "custom_call" not in program("xla")
