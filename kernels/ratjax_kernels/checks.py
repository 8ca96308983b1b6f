"""Argument checks shared by the operations: one clear line for the caller, before any tracing."""


def check_shape(op: str, name: str, array, expected: tuple[int | None, ...]) -> None:
    """Raises `ValueError` unless `array` has the shape `expected` (None: any size)."""
    shape = tuple(array.shape)
    if len(shape) != len(expected) or any(
        want is not None and have != want for have, want in zip(shape, expected, strict=True)
    ):
        want = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{op}: {name} has shape {shape}, must be ({want})")


def check_heads(op: str, heads: int, kv_heads: int) -> int:
    """The number of query heads that share a key/value head.

    Raises:
      ValueError: the key/value heads do not divide the query heads.
    """
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{op}: {heads} query heads cannot share {kv_heads} key/value heads")
    return heads // kv_heads


def check_at_least(op: str, name: str, value: int, least: int) -> None:
    """Raises `ValueError` unless `value >= least`."""
    if value < least:
        raise ValueError(f"{op}: {name}={value} must be at least {least}")
