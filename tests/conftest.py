"""Set-up shared by all tests: the CPU, quick compilation, and run-time checked annotations.

The import hook makes every jaxtyping annotation in the two packages an assertion (shape, dtype),
so a test that calls a function also tests what its signature promises. It must be installed before
either package is first imported, and the environment set before JAX is.
"""

import importlib.metadata
import os
import pathlib
import sys
import tempfile

# `launch`, `experiments` and the tests' own helpers are imported from the checkout.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Tests compile much and run little: on the CPU XLA leaves most optimizations out, and programs
# are kept for the processes that this one starts. `make test-tpu` asks for the optimizations.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
        jax_version = tuple(map(int, importlib.metadata.version("jax").split(".")[:2]))
        if jax_version < (0, 11):  # 0.11 does not know the flag, and aborts
            flag = "--xla_cpu_use_fusion_emitters=false"  # a third less time to compile
            if flag not in os.environ.get("XLA_FLAGS", ""):
                os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="ratjax-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jaxtyping

jaxtyping.install_import_hook(["ratjax", "ratjax_kernels"], "beartype.beartype")

# A minute or more each: started last, they would keep one worker busy alone.
FIRST = (
    "test_on_eight_devices",
    "test_one_process_goes_on",
    "test_two_processes_are_as_one",
    "test_many_kills",
    "test_the_whole_way",
    "test_batches_equal_prompts_one_by_one_under",
    "test_soak",
    "test_compiles_for_tpus",
    "test_each_kernel_compiles",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.name.startswith(FIRST))
