"""A device that ran out of memory, as one line that names the fields to change."""

import re

import jax

from ratjax.ahead.overflow import parse_overflow, remedy
from ratjax.ahead.report import GIB
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig

# What the allocator was asked for when it refused, in the words of XLA's clients.
_ASKED = re.compile(
    r"allocat\w+ (?P<bytes>\d+) bytes|allocat\w+ (?P<size>[\d.]+)(?P<unit>[KMG]i?B)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def out_of_memory(
    error: Exception, model: ModelConfig, train: TrainConfig, length: int
) -> str | None:
    """What to change where a training step does not fit; None where the error is another one.

    Args:
      error: as JAX raised it, at compilation or at run time.
      model: what is trained.
      train: how.
      length: tokens of a sequence.
    """
    message = str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in message:
        return None
    found = parse_overflow(message)
    if found is not None and found.of_kernel:
        return f"out of memory: {found.of_kernel}"
    if found is not None and found.buffers:
        largest = found.buffers[0]
        return (
            f"out of memory: the step needs {found.used / GIB:.2f} GiB of {found.memory} where "
            f"there are {found.available / GIB:.2f}; its largest array is {largest.shape} "
            f"({largest.bytes / GIB:.2f} GiB): {remedy(largest, model, length)}"
        )
    cures = [f"raise train.microbatches={train.microbatches}"]
    if model.remat != "full":
        cures.append(f"set model.remat=full (now {model.remat})")
    cures.append(f"lower train.loss_chunk={train.loss_chunk}")
    cures.append("spread the run over more devices with mesh.fsdp or mesh.tensor")
    return f"out of memory{_asked(message)}: " + ", or ".join(cures)


def _asked(message: str) -> str:
    found = _ASKED.search(message)
    if found is None:
        return ""
    if found["bytes"]:
        size = int(found["bytes"])
    else:
        size = float(found["size"]) * _UNITS[found["unit"][0]]
    return f" ({size / GIB:.2f} GiB more were asked for)"
