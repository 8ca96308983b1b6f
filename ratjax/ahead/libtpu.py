"""The TPU's compiler on a machine without a TPU."""

import importlib.metadata
import importlib.util
import os
import pathlib
import sys

import jax

from ratjax.errors import InputError

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # for processes that this one starts
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what TPU this machine has
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # any: else it is looked for, and the failure printed
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # nothing is run, so there is nothing to share
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def folder() -> pathlib.Path | None:
    """Where libtpu is installed: among Python's packages, or where `make setup-tpu` puts it."""
    if found := importlib.util.find_spec("libtpu"):
        return pathlib.Path(next(iter(found.submodule_search_locations))).parent
    beside = pathlib.Path(sys.prefix) / "tpu"
    return beside if (beside / "libtpu" / "libtpu.so").is_file() else None


def use_libtpu() -> None:
    """Sets what libtpu and JAX need to compile for TPUs that are not there.

    JAX computes on the CPU from here on; call it before JAX's first computation. A setting that the
    environment has already is kept.

    Raises:
      InputError: libtpu is not installed.
    """
    found = folder()
    if found is None:
        raise InputError(
            "libtpu, the TPU's compiler, is not installed; run `make setup-tpu` (Linux on x86-64; "
            "no TPU is needed)"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_LIBRARY_PATH", str(found / "libtpu" / "libtpu.so"))
    jax.config.update("jax_platforms", "cpu")


def version() -> str | None:
    """The installed release of libtpu."""
    found = folder()
    if found is None:
        return None
    return next(
        (d.version for d in importlib.metadata.distributions(name="libtpu", path=[str(found)])),
        None,
    )
