"""`dense_prefill`: every query against all keys up to its own, for training and for prompts."""

from jaxtyping import Array, Float

from ratjax_kernels.checks import check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_dense_prefill = Operation(
    "dense_prefill",
    "ratjax_kernels.dense_prefill",
    ("reference", "xla", "cudnn", "pallas_tpu"),
)


def dense_prefill(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T G D"],
    v: Float[Array, "B T G D"],
    implementation: str | None = None,
) -> Float[Array, "B T H D"]:
    """Causal softmax attention, scale D**-0.5, differentiable in `q`, `k` and `v`.

    Nothing of ours is faster than the vendors' kernels here: cuDNN's on GPUs, JAX's splash
    attention on TPUs.

    Args:
      q: [B, T, H, D] queries.
      k: [B, T, G, D] keys.
      v: [B, T, G, D] values.
      implementation: "reference", "xla", "cudnn", "pallas_tpu", or None for the best on the device
        that is compiled for.

    Returns:
      [B, T, H, D] in the dtype of `q`.

    Raises:
      ValueError: shapes that do not agree, or an unknown implementation.
    """
    batch, length, heads, channels = q.shape
    check_shape("dense_prefill", "k", k, (batch, length, None, channels))
    check_shape("dense_prefill", "v", v, k.shape)
    check_heads("dense_prefill", heads, k.shape[2])
    return _dense_prefill(implementation, q, k, v)
