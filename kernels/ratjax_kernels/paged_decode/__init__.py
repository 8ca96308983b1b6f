"""Attention of one new query over chosen pages of a cache, and the bounds that choose them."""

from ratjax_kernels.paged_decode.api import page_bounds, page_scores, paged_decode, quest_decode

__all__ = ["page_bounds", "page_scores", "paged_decode", "quest_decode"]
