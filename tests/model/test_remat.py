import collections
import dataclasses

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.model import Decoder
from ratjax.model.remat import KERNELS
from ratjax.sparsity.dense import Dense
from ratjax_kernels import prefer


def primitives(jaxpr, counts):
    for equation in jaxpr.eqns:
        counts[equation.primitive.name] += 1
        if equation.primitive.name not in KERNELS:
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                primitives(inner, counts)
    return counts


def gradient_of(remat, implementation):
    """How often each primitive occurs in the gradient of a decoder, which is traced, not run."""
    memory = with_memory(preset("tiny"), MemoryConfig())
    config = dataclasses.replace(memory, remat=remat, head_dim=128, dtype="bfloat16")
    model = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def loss(model, tokens):
        return model.hidden(tokens, Dense()).astype(jnp.float32).sum()

    with prefer(implementation, "xla"):
        jaxpr = jax.make_jaxpr(jax.grad(loss))(model, tokens)
    return primitives(jaxpr.jaxpr, collections.Counter())


def launch_nothing(kernel, inputs, outputs, **constants):
    return tuple(jnp.zeros(out.shape, out.dtype) for out in outputs)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "triton"])
@pytest.mark.parametrize("remat", ["save_products", "save_attention"])
def test_no_kernel_runs_twice(remat, implementation, monkeypatch):
    """As many calls as where everything is kept; where nothing is, each forward kernel again."""
    if implementation == "triton":
        scan = pytest.importorskip("ratjax_kernels.scan.triton")
        monkeypatch.setattr(scan, "device_problem", lambda *_: None)
        monkeypatch.setattr(scan, "launch", launch_nothing)
    kept, found, again = (gradient_of(r, implementation) for r in ("none", remat, "full"))
    calls = [sum(counts[k] for k in KERNELS) for counts in (kept, found, again)]
    assert 0 < calls[0] == calls[1] < calls[2]
    if implementation == "pallas_tpu":  # elsewhere attention is products of XLA's, formed again
        assert (found["dot_general"] == kept["dot_general"]) == (remat == "save_products")
