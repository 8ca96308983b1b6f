"""Attention of one new query over a cache."""

from ratjax_kernels.dense_decode.api import dense_decode

__all__ = ["dense_decode"]
