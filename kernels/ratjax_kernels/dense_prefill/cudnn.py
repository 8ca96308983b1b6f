"""cuDNN's attention through JAX. It is told "causal", never handed a mask, which it would read."""

import jax
import jax.numpy as jnp

from ratjax_kernels.dispatch import platform

_MOST_CHANNELS = 128  # 256 on some devices


def limits_of_dense_prefill(q, k, v):
    """See `ratjax_kernels.dispatch.Operation`."""
    if platform() != "gpu":
        return "needs a CUDA device"
    for x in (q, k, v):
        if x.dtype not in (jnp.bfloat16, jnp.float16):
            return f"serves bfloat16 and float16, not {x.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > _MOST_CHANNELS:
        return f"serves multiples of 8 up to {_MOST_CHANNELS} channels, not {q.shape[-1]}"
    return None


def dense_prefill(q, k, v):
    """See `ratjax_kernels.dense_prefill.api`."""
    odd = q.shape[1] % 2
    if odd:  # cuDNN has no gradient there; what comes after the end, no query of ours sees
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return out[:, :-1] if odd else out
