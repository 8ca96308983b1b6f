"""MoBA's two pieces: the mean key of each block, and attention over listed blocks.

Block p holds the positions p * block_size .. (p + 1) * block_size - 1. See "MoBA: Mixture of Block
Attention for Long-Context LLMs" (arXiv 2502.13189), section 2.2; choosing the blocks is left to the
caller.
"""

from jaxtyping import Array, Float, Float32, Int32

from ratjax_kernels.checks import check_at_least, check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_block_means = Operation("block_means", "ratjax_kernels.block_prefill")
_block_prefill = Operation("block_prefill", "ratjax_kernels.block_prefill")


def block_means(
    k: Float[Array, "B T G D"], block_size: int, implementation: str | None = None
) -> Float32[Array, "B P G D"]:
    """The mean key of each block; a partial last block averages what is there.

    Args:
      k: [B, T, G, D] keys as attention sees them.
      block_size: positions of a block.
      implementation: "reference", "xla", or None for the best on the default device.

    Returns:
      float32 [B, ceil(T / block_size), G, D].

    Raises:
      ValueError: a block size below 1, or an unknown implementation.
    """
    check_shape("block_means", "k", k, (None, None, None, None))
    check_at_least("block_means", "block_size", block_size, 1)
    return _block_means(implementation, k, block_size)


def block_prefill(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T G D"],
    v: Float[Array, "B T G D"],
    block_ids: Int32[Array, "B H T K"],
    block_size: int,
    implementation: str | None = None,
) -> Float[Array, "B T H D"]:
    """Softmax attention of query i over the keys j <= i in the blocks listed for it.

    Nothing is read but the list: the query's own block only if it is listed. Differentiable in `q`,
    `k` and `v`. Memory is bounded by a chunk of queries at a time, forward and backward.

    Args:
      q: [B, T, H, D] queries.
      k: [B, T, G, D] keys.
      v: [B, T, G, D] values; blocks that no query lists have no influence, NaN included.
      block_ids: int32 [B, H, T, K]; -1 lists nothing. A block listed twice counts once.
      block_size: positions of a block; T need not be a multiple of it.
      implementation: "reference", "xla", or None for the best on the default device.

    Returns:
      [B, T, H, D] in the dtype of `q`; zeros for a query that sees no key.

    Raises:
      ValueError: shapes that do not agree, a block size below 1, or an unknown implementation.
    """
    batch, length, heads, channels = q.shape
    check_shape("block_prefill", "k", k, (batch, length, None, channels))
    check_shape("block_prefill", "v", v, k.shape)
    check_shape("block_prefill", "block_ids", block_ids, (batch, heads, length, None))
    check_heads("block_prefill", heads, k.shape[2])
    check_at_least("block_prefill", "block_size", block_size, 1)
    return _block_prefill(implementation, q, k, v, block_ids, block_size)
