"""A new token written into a cache in place, with the bounds of its page."""

from ratjax_kernels.cache_append.api import append

__all__ = ["append"]
