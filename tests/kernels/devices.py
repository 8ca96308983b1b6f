"""Where Triton kernels can run: on a GPU, in Triton's interpreter, or not at all."""

import importlib.util
import os

import jax
import numpy as np
import pytest

ON_GPU = jax.default_backend() == "gpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")


def runs_triton(test):
    """Marks a test of a Triton kernel: run on a GPU, and where TRITON_INTERPRET=1 is set."""
    able = HAS_TRITON and (ON_GPU or INTERPRETED)
    test = pytest.mark.skipif(not able, reason="needs a CUDA device or TRITON_INTERPRET=1")(test)
    return pytest.mark.gpu(pytest.mark.triton_interpret(test))


def compiles_triton(test):
    """Marks a test that compiles kernels ahead for sm_80, sm_90 and sm_100."""
    able = HAS_TRITON and not INTERPRETED
    test = pytest.mark.skipif(not able, reason="needs triton, not interpreted")(test)
    test = pytest.mark.parametrize("capability", [80, 90, 100])(test)
    return pytest.mark.slow(test)


def check_compiles(capsys, capability, function, *shapes):
    """Compiles everything that `function` would launch for arrays of these shapes; prints usage.

    Returns:
      A list of (kernel name, Usage).
    """
    from ratjax_kernels.triton_ahead import compile_ahead
    from ratjax_kernels.triton_call import recording

    jax.clear_caches()
    with recording() as launches:
        jax.eval_shape(function, *shapes)
    jax.clear_caches()
    assert launches, "nothing was launched"
    used = []
    for launch in launches:
        name = launch.kernel.__name__
        usage = compile_ahead(launch, capability)
        assert usage.code > 0
        used.append((name, usage))
        with capsys.disabled():
            print(
                f"\n{name} sm_{capability}: {usage.registers} registers, "
                f"{usage.shared} bytes shared, {usage.spilled} bytes spilled"
            )
    return used


def error(have, want):
    """Root of the mean squared difference, relative to `want`."""
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    return np.sqrt(np.mean((have - want) ** 2)) / max(np.sqrt(np.mean(want**2)), 1e-30)


def assert_rounded_like(have, plain, want, least=1e-6):
    """`have` loses at most twice what plain JAX (`plain`) loses in the same dtype against `want`.

    `least` is what must be granted where plain JAX loses (nearly) nothing.
    """
    assert error(have, want) <= max(2 * error(plain, want), least)
