"""Patterns: what prefill attends to, what the cache keeps, what decode reads.

One file a pattern. Each has its operation as functions on arrays, and a frozen dataclass (a
`Pattern`) that the model runs without knowing which one it is.
"""

from ratjax.sparsity import dense, dilated, moba, quest, snapkv
from ratjax.sparsity.pattern import Pattern, Reads

__all__ = ["Pattern", "Reads", "dense", "dilated", "moba", "quest", "snapkv"]
