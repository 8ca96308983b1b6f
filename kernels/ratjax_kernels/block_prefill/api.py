"""MoBA's three pieces: the mean key of each block, choosing by it, attention over listed blocks.

Block p holds the positions p * block_size .. (p + 1) * block_size - 1. See "MoBA: Mixture of Block
Attention for Long-Context LLMs" (arXiv 2502.13189), section 2.2. Attention reads any list, whoever
chose it.
"""

from jaxtyping import Array, Float, Float32, Int32

from ratjax_kernels.checks import check_at_least, check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_block_means = Operation("block_means", "ratjax_kernels.block_prefill")
_block_select = Operation(
    "block_select", "ratjax_kernels.block_prefill", ("reference", "xla", "triton")
)
_block_prefill = Operation(
    "block_prefill", "ratjax_kernels.block_prefill", ("reference", "xla", "triton", "pallas_tpu")
)


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


def block_select(
    q: Float[Array, "B T H D"],
    means: Float32[Array, "B P G D"],
    block_size: int,
    blocks: int,
    force_first: bool = True,
    implementation: str | None = None,
) -> Int32[Array, "B H T {blocks}"]:
    """The blocks each query attends to: its own, and those whose mean key it matches best.

    A block is scored, by the float32 product of query and mean, once it lies wholly in the past.
    Higher scores come first, then lower indices. The selection has no gradient.

    Args:
      q: [B, T, H, D] queries as attention sees them.
      means: float32 [B, P, G, D] mean keys, P = ceil(T / block_size); see `block_means`.
      block_size: positions of a block.
      blocks: K, how many to list, the own one included.
      force_first: block 0 is listed for every query.
      implementation: "reference", "xla", "triton", or None for the best on the default device.

    Returns:
      int32 [B, H, T, blocks]: ascending, then -1 for queries with fewer blocks.

    Raises:
      ValueError: shapes that do not agree, fewer blocks than are forced, a block size below 1, or
        an unknown implementation.
    """
    check_at_least("block_select", "block_size", block_size, 1)
    check_at_least("block_select", "blocks", blocks, 1 + bool(force_first))
    batch, length, heads, channels = q.shape
    count = -(-length // block_size)
    check_shape("block_select", "means", means, (batch, count, None, channels))
    check_heads("block_select", heads, means.shape[2])
    return _block_select(implementation, q, means, block_size, blocks, bool(force_first))


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
    `k` and `v`. "xla" holds the scores of a chunk of queries at a time, forward and backward;
    "triton" a partial result for each listed block, [B, T, H, K, D] in the dtype of `q`;
    "pallas_tpu" a bit for each query and block.

    Args:
      q: [B, T, H, D] queries.
      k: [B, T, G, D] keys.
      v: [B, T, G, D] values; blocks that no query lists have no influence, NaN included.
      block_ids: int32 [B, H, T, K]; -1 lists nothing. A block listed twice counts once.
      block_size: positions of a block; T need not be a multiple of it.
      implementation: "reference", "xla", "triton", "pallas_tpu", or None for the best on the device
        that is compiled for.

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
