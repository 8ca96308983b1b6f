"""How Pallas kernels for TPUs are run: on a TPU, or in Pallas' TPU interpreter on any device."""

import contextlib

from jax.experimental.pallas import tpu as pltpu

_interpret = False


@contextlib.contextmanager
def interpreting(**switches):
    """Within it, TPU kernels run in Pallas' TPU interpreter, for tests on small shapes.

    Reads out of bounds raise, memory that nothing wrote is NaN, and races between a kernel and its
    copies are found. Functions traced before are not traced again.

    Args:
      **switches: further fields of `pltpu.InterpretParams`.
    """
    global _interpret
    strict = {
        "detect_races": True,
        "out_of_bounds_reads": "raise",
        "uninitialized_memory": "nan",
    }
    before, _interpret = _interpret, pltpu.InterpretParams(**strict | switches)
    try:
        yield
    finally:
        _interpret = before


def interpret():
    """What `pl.pallas_call`'s `interpret` should be."""
    return _interpret
