"""`dense_decode`: one query a sequence against all its cached keys."""

from jaxtyping import Array, Bool, Float, Int32

from ratjax_kernels.checks import check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_dense_decode = Operation(
    "dense_decode", "ratjax_kernels.dense_decode", ("reference", "xla", "pallas_tpu", "triton")
)


def dense_decode(
    q: Float[Array, "B 1 H D"],
    k: Float[Array, "*L B S G D"],
    v: Float[Array, "*L B S G D"],
    lengths: Int32[Array, " B"],
    implementation: str | None = None,
    *,
    mask: Bool[Array, "B S"] | None = None,
    layer: Int32[Array, ""] | None = None,
) -> Float[Array, "B 1 H D"]:
    """Softmax attention of one query over the first `lengths` slots of a cache, scale D**-0.5.

    What lies in the slots beyond (NaN included), or outside the mask, has no influence.

    Args:
      q: [B, 1, H, D] queries.
      k: [B, S, G, D] keys, or those of several layers, [L, B, S, G, D]; slot order does not matter.
      v: values, of the same shape.
      lengths: int32 [B], filled slots; a sequence that reads nothing gets zeros.
      implementation: "reference", "xla", "pallas_tpu", "triton", or None for the best here.
      mask: bool [B, S], the filled slots that are read; None: all of them.
      layer: which of the layers, int32 []; it is read where it lies. None: there is only one.

    Returns:
      [B, 1, H, D] in the dtype of `q`.

    Raises:
      ValueError: shapes that do not agree, or an unknown implementation.
    """
    batch, _, heads, channels = q.shape
    check_shape("dense_decode", "q", q, (batch, 1, heads, channels))
    layers = () if layer is None else (None,)
    check_shape("dense_decode", "k", k, (*layers, batch, None, None, channels))
    check_shape("dense_decode", "v", v, k.shape)
    check_shape("dense_decode", "lengths", lengths, (batch,))
    if mask is not None:
        check_shape("dense_decode", "mask", mask, (batch, k.shape[-3]))
    check_heads("dense_decode", heads, k.shape[-2])
    return _dense_decode(implementation, q, k, v, lengths, mask, layer)
