"""`dense_decode`: one query a sequence against all its cached keys."""

from jaxtyping import Array, Float, Int32

from ratjax_kernels.checks import check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_dense_decode = Operation("dense_decode", "ratjax_kernels.dense_decode")


def dense_decode(
    q: Float[Array, "B 1 H D"],
    k: Float[Array, "B S G D"],
    v: Float[Array, "B S G D"],
    lengths: Int32[Array, " B"],
    implementation: str | None = None,
) -> Float[Array, "B 1 H D"]:
    """Softmax attention of one query over the first `lengths` slots of a cache, scale D**-0.5.

    What lies in the slots beyond (NaN included) has no influence.

    Args:
      q: [B, 1, H, D] queries.
      k: [B, S, G, D] keys; slot order does not matter.
      v: [B, S, G, D] values.
      lengths: int32 [B], filled slots; a sequence of length 0 gets zeros.
      implementation: "reference", "xla", or None for the best on the default device.

    Returns:
      [B, 1, H, D] in the dtype of `q`.

    Raises:
      ValueError: shapes that do not agree, or an unknown implementation.
    """
    batch, _, heads, channels = q.shape
    check_shape("dense_decode", "q", q, (batch, 1, heads, channels))
    check_shape("dense_decode", "k", k, (batch, None, None, channels))
    check_shape("dense_decode", "v", v, k.shape)
    check_shape("dense_decode", "lengths", lengths, (batch,))
    check_heads("dense_decode", heads, k.shape[2])
    return _dense_decode(implementation, q, k, v, lengths)
