"""Causal attention over strided, recent and initial keys."""

from ratjax_kernels.strided_prefill.api import strided_prefill

__all__ = ["strided_prefill"]
