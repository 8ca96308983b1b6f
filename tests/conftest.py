"""Set-up shared by all tests: the CPU, and run-time checked annotations.

The import hook makes every jaxtyping annotation in the two packages an assertion (shape, dtype),
so a test that calls a function also tests what its signature promises. It must be installed before
either package is first imported.
"""

import os
import pathlib
import sys

# `launch`, `experiments` and the tests' own helpers are imported from the checkout.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxtyping

jaxtyping.install_import_hook(["ratjax", "ratjax_kernels"], "beartype.beartype")
