"""Causal attention of every query over its own list of key blocks."""

from ratjax_kernels.block_prefill.api import block_means, block_prefill, block_select

__all__ = ["block_means", "block_prefill", "block_select"]
