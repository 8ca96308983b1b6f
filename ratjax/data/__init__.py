"""Training data: folders of rows or token streams, mixed by weight, read in a fixed order.

What is named here is imported when it is first used: the processes that tokenize need no JAX.
"""

import importlib
from typing import Any

_MODULES = {
    "Batch": "batch",
    "Batches": "batches",
    "MissingDataError": "folder",
    "Rows": "rows",
    "Source": "batches",
    "Stream": "stream",
    "iterate": "batches",
    "open_source": "batches",
    "write_rows": "rows",
    "write_stream": "stream",
}

__all__ = [
    "Batch",
    "Batches",
    "MissingDataError",
    "Rows",
    "Source",
    "Stream",
    "iterate",
    "open_source",
    "write_rows",
    "write_stream",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
