"""Kernels for attention with an exponentially decaying memory and sparse attention patterns.

Arrays are [B, T, heads, D]. With fewer key/value heads (G) than query heads (H), query head h
reads key/value head h // (H / G). Arithmetic accumulates in float32 and outputs have the inputs'
dtype. Every function takes `implementation`: None picks the best for the default device.
"""

from ratjax_kernels.scan import decay_scan, decay_step

__all__ = ["decay_scan", "decay_step"]
