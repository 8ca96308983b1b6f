"""Keeps the machine code of Triton kernels in the folder of JAX's compilation cache.

JAX looks into its cache when a program has been lowered, and to lower it jax-triton compiles the
program's kernels: 3 to 8 s each, again in every process. What it compiles depends on Triton's
intermediate code, the options and the versions alone, so one function of jax-triton's is wrapped.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from types import ModuleType

import jax


def keep_compiled(library: ModuleType) -> None:
    """Makes `jax_triton.triton_lib` look for what it would compile; without such a function, not.

    Args:
      library: has `compile_ttir_inplace(module, backend, options, capability, platform)`, which
        returns a `CompilationResult` of text and numbers (jax-triton 0.3).
    """
    compile_module = getattr(library, "compile_ttir_inplace", None)
    result = getattr(library, "CompilationResult", None)
    if compile_module is None or not dataclasses.is_dataclass(result):
        return

    def look_or_compile(module, backend, options, capability, platform):
        folder = _folder()
        if folder is None or platform != "cuda":
            return compile_module(module, backend, options, capability, platform)
        # Before compiling, which changes the module.
        path = folder / f"{_key(library, str(module), repr(options), capability)}.json"
        try:
            return result(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # not there, cut short, or of another version
            found = compile_module(module, backend, options, capability, platform)
            _write(path, found)
            return found

    library.compile_ttir_inplace = look_or_compile


def _folder() -> pathlib.Path | None:
    """Where kernels are kept; None: JAX keeps nothing either, or not on a local disk."""
    cache = jax.config.jax_compilation_cache_dir
    if not cache or "://" in cache or not jax.config.jax_enable_compilation_cache:
        return None
    return pathlib.Path(cache) / "triton"


def _key(library: ModuleType, *parts) -> str:
    return hashlib.sha256(repr((parts, _surroundings(library))).encode()).hexdigest()


def _surroundings(library: ModuleType) -> tuple:
    """What else the machine code may depend on: Triton, what calls it, and variables it reads."""
    import triton
    from triton._C.libtriton import get_cache_invalidating_env_vars

    calls = hashlib.sha256(pathlib.Path(library.__file__).read_bytes()).hexdigest()
    return triton.__version__, calls, get_cache_invalidating_env_vars()


def _write(path: pathlib.Path, found) -> None:
    """Writes a result as a whole or not at all. A disk that takes nothing only costs time."""
    # TypeError: it holds what JSON does not.
    with contextlib.suppress(OSError, TypeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(found))
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = pathlib.Path(folder) / path.name
            whole.write_text(text)
            os.replace(whole, path)
