"""What surrounds cuDNN's attention; the kernel itself needs a GPU and is only tested there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import dense_prefill
from ratjax_kernels.dense_prefill import cudnn
from tests.kernels import oracle
from tests.kernels.devices import needs_gpu


@pytest.fixture
def lengths(monkeypatch):
    """The lengths that cuDNN is handed; XLA's attention stands in for it."""
    seen, attend = [], jax.nn.dot_product_attention

    def instead(q, k, v, *, is_causal, implementation):
        if implementation == "cudnn":
            seen.append((q.shape[1], k.shape[1], v.shape[1]))
        assert is_causal
        return attend(q, k, v, is_causal=True, implementation="xla")

    monkeypatch.setattr(cudnn, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    return seen


def output_and_gradients(implementation, q, k, v, d_out):
    out, pull = jax.vjp(lambda *x: dense_prefill(*x, implementation), q, k, v)
    return out, *pull(d_out)


def inputs(length, channels):
    rng = np.random.default_rng(length)
    shapes = [(2, length, heads, channels) for heads in (4, 2, 2, 4)]
    return [oracle.normal(rng, shape, jnp.bfloat16) for shape in shapes]


def assert_close(have, want, atol):
    for h, w in zip(have, want, strict=True):
        assert h.dtype == jnp.bfloat16
        assert np.abs(np.asarray(h, np.float32) - np.asarray(w, np.float32)).max() <= atol


@pytest.mark.parametrize("length", [1, 6, 7])
def test_cudnn_is_handed_even_lengths(lengths, length):
    args = inputs(length, 8)
    have = output_and_gradients("cudnn", *args)
    assert lengths == [(length + length % 2,) * 3]
    # Sums of more terms, in another order: one unit of values below 4.
    assert_close(have, output_and_gradients("xla", *args), 2**-6)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("length", [7, 129, 256])
def test_output_and_gradients_on_a_gpu(length):
    args = inputs(length, 64)
    want = output_and_gradients("reference", *(x.astype(jnp.float32) for x in args))
    # Probabilities and sums are rounded to bfloat16 on the way: some units of values below 4.
    assert_close(output_and_gradients("cudnn", *args), want, 2**-4)
