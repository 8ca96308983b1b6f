"""How much the last queries of a prompt attend to each key."""

from ratjax_kernels.window_scores.api import window_scores

__all__ = ["window_scores"]
