"""Attention with an exponentially decaying memory, and sparse long-context inference.

    model = ratjax.load("path/to/checkpoint")       # see `ratjax.model.checkpoint.load_model`
    print(ratjax.inspect("path/to/checkpoint"))     # see `ratjax.model.inspect.inspect`

Both are imported when they are first used: `import ratjax` alone loads neither JAX nor Orbax.
"""

import importlib
from typing import Any

_EXPORTS = {
    "load": ("ratjax.model.checkpoint", "load_model"),
    "inspect": ("ratjax.model.inspect", "inspect"),
}

__all__ = ["inspect", "load"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
