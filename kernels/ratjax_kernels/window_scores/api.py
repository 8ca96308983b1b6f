"""SnapKV's vote of the last queries, before pooling and selection."""

from jaxtyping import Array, Float, Float32, Int32

from ratjax_kernels.checks import check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_window_scores = Operation(
    "window_scores", "ratjax_kernels.window_scores", ("reference", "xla", "pallas_tpu", "triton")
)


def window_scores(
    q: Float[Array, "B W H D"],
    k: Float[Array, "B S G D"],
    lengths: Int32[Array, " B"],
    implementation: str | None = None,
) -> Float32[Array, "B G S"]:
    """Attention paid to each key by the last W queries: summed over them, averaged over a group.

    The softmax of each query runs over all keys up to its own position, scale D**-0.5, as in
    "SnapKV: LLM Knows What You are Looking for Before Generation" (arXiv 2404.14469), section 3;
    the average over the query heads of a key/value head follows the softmax.

    Args:
      q: [B, W, H, D], the last W queries of each prompt: query w stands at lengths - W + w, and
        does not count where that is negative.
      k: [B, S, G, D] keys as attention sees them.
      lengths: int32 [B], tokens of each prompt.
      implementation: "reference", "xla", "pallas_tpu", "triton", or None for the best here.

    Returns:
      float32 [B, G, S]; exactly 0 at positions >= lengths, whatever `k` holds there.

    Raises:
      ValueError: shapes that do not agree, or an unknown implementation.
    """
    batch, _, heads, channels = q.shape
    check_shape("window_scores", "k", k, (batch, None, None, channels))
    check_shape("window_scores", "lengths", lengths, (batch,))
    check_heads("window_scores", heads, k.shape[2])
    return _window_scores(implementation, q, k, lengths)
