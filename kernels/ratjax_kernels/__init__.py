"""Kernels for attention with an exponentially decaying memory and sparse attention patterns.

Arrays are [B, T, heads, D]. With fewer key/value heads (G) than query heads (H), query head h
reads key/value head h // (H / G). Arithmetic accumulates in float32 and outputs have the inputs'
dtype. Every function takes `implementation`: None picks the best for the default device.
"""

from ratjax_kernels.block_prefill import block_means, block_prefill, block_select
from ratjax_kernels.cache_append import append
from ratjax_kernels.compaction import kept_positions
from ratjax_kernels.dense_decode import dense_decode
from ratjax_kernels.dense_prefill import dense_prefill
from ratjax_kernels.dispatch import prefer
from ratjax_kernels.paged_decode import (
    page_bounds,
    page_scores,
    paged_decode,
    quest_decode,
)
from ratjax_kernels.scan import decay_scan, decay_step
from ratjax_kernels.strided_prefill import strided_prefill
from ratjax_kernels.window_scores import window_scores

__all__ = [
    "append",
    "block_means",
    "block_prefill",
    "block_select",
    "decay_scan",
    "decay_step",
    "dense_decode",
    "dense_prefill",
    "kept_positions",
    "page_bounds",
    "page_scores",
    "paged_decode",
    "prefer",
    "quest_decode",
    "strided_prefill",
    "window_scores",
]
