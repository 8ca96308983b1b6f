"""SnapKV's choice among the tokens of a prompt."""

from jaxtyping import Array, Float, Int32

from ratjax_kernels.checks import check_at_least, check_shape
from ratjax_kernels.dispatch import Operation

_kept_positions = Operation(
    "kept_positions", "ratjax_kernels.compaction", ("reference", "xla", "triton")
)


def kept_positions(
    scores: Float[Array, "B G S"],
    lengths: Int32[Array, " B"],
    window: int,
    capacity: int,
    implementation: str | None = None,
) -> Int32[Array, "B G C"]:
    """Each prompt's last `window` tokens, then its best others, up to `capacity` in all.

    As in "SnapKV: LLM Knows What You are Looking for Before Generation" (arXiv 2404.14469),
    section 3. Equal scores: the earlier position. An infinite score counts as the largest finite
    one; the two zeros are equal; what stands at positions >= lengths does not matter.

    Args:
      scores: [B, G, S], no NaN before lengths.
      lengths: int32 [B], tokens of each prompt.
      window: tokens at the end that are always kept.
      capacity: C, tokens kept in all, at least `window`.
      implementation: "reference", "xla", "triton", or None for the best on the default device.

    Returns:
      int32 [B, G, C]: positions in ascending order, then -1 where a prompt has fewer tokens.

    Raises:
      ValueError: shapes that do not agree, a negative window, a capacity below it or below 1, or
        an unknown implementation.
    """
    check_shape("kept_positions", "lengths", lengths, (scores.shape[0],))
    check_at_least("kept_positions", "window", window, 0)
    check_at_least("kept_positions", "capacity", capacity, max(window, 1))
    return _kept_positions(implementation, scores, lengths, window, capacity)
