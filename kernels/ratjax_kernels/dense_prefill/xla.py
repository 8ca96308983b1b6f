"""XLA's own attention: the scores of all pairs, in float32."""

import contextlib

import jax
import jax.numpy as jnp


def dense_prefill(q, k, v):
    """See `ratjax_kernels.dense_prefill.api`."""
    exact = contextlib.nullcontext()
    if jnp.float32 in (q.dtype, k.dtype, v.dtype):
        # As in the other operations: GPUs would round to 10 bits of the mantissa, TPUs to 7.
        exact = jax.default_matmul_precision("highest")
    with exact:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
