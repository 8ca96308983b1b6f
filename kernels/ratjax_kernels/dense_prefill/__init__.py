"""Dense causal attention of whole sequences."""

from ratjax_kernels.dense_prefill.api import dense_prefill

__all__ = ["dense_prefill"]
