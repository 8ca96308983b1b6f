"""One way to choose among the implementations of an operation.

Every operation has a `reference` (plain, the oracle of the tests) and an `xla` implementation that
run anywhere; some also have kernels for one kind of device. With `implementation=None` the best one
for the device that is compiled for (see `platform`) is taken, and where that cannot serve the call
(a package is missing, or the shape is outside the kernel's limits) the next best is, with one log
line. A named implementation is never replaced by another: it runs or raises.
"""

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable

import jax

from ratjax_kernels.manual_axes import vary_together

NAMES = ("reference", "xla", "pallas_tpu", "triton", "cudnn")

# What `implementation=None` tries, in order, for each of JAX's platform names.
_PREFERENCE = {"gpu": ("triton", "cudnn", "xla"), "tpu": ("pallas_tpu", "xla")}
_ANYWHERE = ("xla",)

_preferred: tuple[str, ...] = ()

_log = logging.getLogger("ratjax_kernels")


@contextlib.contextmanager
def prefer(*names: str):
    """Within it `implementation=None` means the first of `names` that an operation has and can use.

    For comparisons and for ruling out a kernel when something looks wrong. A program that was
    compiled before keeps what it was compiled with: call `jax.clear_caches()` in between.

    Raises:
      ValueError: no operation has an implementation of such a name.
    """
    global _preferred
    for name in names:
        if name not in NAMES:
            raise ValueError(f"prefer: {name!r} is none of {', '.join(map(repr, NAMES))}")
    before, _preferred = _preferred, names
    try:
        yield
    finally:
        _preferred = before


def platform() -> str:
    """JAX's name for the kind of device that is compiled for: "cpu", "gpu" or "tpu".

    That of the mesh's devices within `jax.set_mesh`, for a program may be compiled for devices that
    are not there, and the default backend's elsewhere.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


class Operation:
    """An operation and its implementations.

    Attributes:
      name: the public function's name, which the implementations' functions carry too.
    """

    def __init__(self, name: str, package: str, names: tuple[str, ...] = ("reference", "xla")):
        """Args:
        name: the operation.
        package: the package that holds one module an implementation, each with a function `name`
          and, where there are limits, `limits_of_<name>(*args, **kwargs) -> str | None`, which says
          in a few words why it cannot serve a call (None: it can).
        names: the implementations that exist.
        """
        self.name = name
        self._package = package
        self._names = names

    def __call__(self, implementation: str | None, *args, **kwargs):
        """Runs the operation with the implementation asked for, or the best one.

        Raises:
          ValueError: the implementation is unknown, or cannot serve this call.
        """
        if implementation is not None:
            function, problem = self._resolve(implementation, args, kwargs)
            if problem:
                raise ValueError(f"{self.name}: implementation={implementation!r} {problem}")
            return _call(implementation, function, args, kwargs)
        for name in (*_preferred, *_PREFERENCE.get(platform(), _ANYWHERE)):
            if name not in self._names:
                continue
            function, problem = self._resolve(name, args, kwargs)
            if not problem:
                return _call(name, function, args, kwargs)
            log_once(f"{self.name}: {name} {problem}; using the next best implementation")
        raise AssertionError(f"{self.name}: xla serves every call")

    def _resolve(self, name: str, args, kwargs) -> tuple[Callable | None, str | None]:
        if name not in self._names:
            known = ", ".join(map(repr, self._names))
            return (
                None,
                f"does not exist; choose one of {known}, or None for the best",
            )
        try:
            module = importlib.import_module(f"{self._package}.{name}")
        except ImportError as error:
            return None, f"is not available here ({error})"
        limits = getattr(module, f"limits_of_{self.name}", None)
        problem = limits(*args, **kwargs) if limits else None
        return getattr(module, self.name), problem


def _call(name, function, args, kwargs):
    args = vary_together(args)
    return function(*args, **kwargs)


@functools.cache
def log_once(line: str) -> None:
    """One warning, however often the same line is said."""
    _log.warning(line)
