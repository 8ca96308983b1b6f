"""Which tokens of a prompt stay in a cache that keeps fewer than it has."""

from ratjax_kernels.compaction.api import kept_positions

__all__ = ["kept_positions"]
