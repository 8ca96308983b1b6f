"""The exponentially decaying memory: a gated running average over keys and values."""

from ratjax_kernels.scan.api import decay_scan, decay_step

__all__ = ["decay_scan", "decay_step"]
