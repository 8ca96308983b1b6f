"""`append`: one token a sequence into a cache, in place."""

from jaxtyping import Array, Float, Int32

from ratjax_kernels.checks import check_at_least, check_shape
from ratjax_kernels.dispatch import Operation

_append = Operation(
    "append", "ratjax_kernels.cache_append", ("reference", "xla", "pallas_tpu", "triton")
)


def append(
    k: Float[Array, "*L B S G D"],
    v: Float[Array, "*L B S G D"],
    lengths: Int32[Array, " B"],
    k_new: Float[Array, "B 1 G D"],
    v_new: Float[Array, "B 1 G D"],
    bounds: tuple[Float[Array, "*L B P G D"], Float[Array, "*L B P G D"]] | None = None,
    page_size: int = 1,
    implementation: str | None = None,
    *,
    layer: Int32[Array, ""] | None = None,
) -> tuple[Array, ...]:
    """Writes a token into slot `lengths` of each sequence and widens the bounds of its page.

    What is passed in is overwritten where the caller gives it up (as a scan's carry does), and
    copied first where it does not. A full sequence drops the token.

    Args:
      k: [B, S, G, D] keys, or those of several layers, [L, B, S, G, D].
      v: values, of the same shape.
      lengths: int32 [B], filled slots before this token.
      k_new: [B, 1, G, D] the token's keys.
      v_new: [B, 1, G, D] its values.
      bounds: (k_min, k_max) of `page_bounds`, [B, P, G, D] or [L, B, P, G, D].
      page_size: slots of a page; of no account without bounds.
      implementation: "reference", "xla", "pallas_tpu", "triton", or None for the best here.
      layer: which of the layers is written, int32 []. None: there is only one.

    Returns:
      (k, v), or (k, v, k_min, k_max).

    Raises:
      ValueError: shapes that do not agree, a page size below 1, or an unknown implementation.
    """
    layers = () if layer is None else (None,)
    batch, _, kv_heads, channels = k_new.shape
    check_shape("append", "k", k, (*layers, batch, None, kv_heads, channels))
    check_shape("append", "v", v, k.shape)
    check_shape("append", "v_new", v_new, k_new.shape)
    check_shape("append", "lengths", lengths, (batch,))
    check_at_least("append", "page_size", page_size, 1)
    if bounds is not None:
        shape = (*k.shape[:-3], -(-k.shape[-3] // page_size), *k.shape[-2:])
        check_shape("append", "bounds[0]", bounds[0], shape)
        check_shape("append", "bounds[1]", bounds[1], shape)
    return _append(implementation, k, v, lengths, k_new, v_new, bounds, page_size, layer)
