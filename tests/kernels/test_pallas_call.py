"""What all Pallas TPU kernels are run through, and the tools of their tests."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.pallas_call import VMEM_BYTES, Kernel, padded_bytes
from tests.kernels.pallas_devices import interpreted


def doubling(rows, buffers=2, scratch=()):
    def body(x_ref, out_ref, *_):
        out_ref[...] = 2 * x_ref[...]

    x = jax.ShapeDtypeStruct((2 * rows, 256), jnp.float32)
    block = pl.BlockSpec((rows, 256), lambda i: (i, 0), pipeline_mode=pl.Buffered(buffers))
    plain = pl.BlockSpec((rows, 256), lambda i: (i, 0))
    return Kernel(body, "doubling", (2,), (x,), (block,), (x,), (plain,), scratch)


def test_memory_is_blocks_times_buffers_and_scratch():
    block = 64 * 256 * 4
    assert doubling(64).vmem_bytes() == 4 * block
    assert doubling(64, buffers=3).vmem_bytes() == 5 * block
    scratch = (pltpu.VMEM((3, 5), jnp.bfloat16), pltpu.SemaphoreType.DMA((2,)))
    assert doubling(64, scratch=scratch).vmem_bytes() == 4 * block + 16 * 128 * 2


def test_arrays_are_padded_to_registers():
    assert padded_bytes((1,), jnp.float32) == 8 * 128 * 4
    assert padded_bytes((3, 17, 129), jnp.bfloat16) == 3 * 32 * 256 * 2
    assert padded_bytes((33, 128), jnp.int8) == 64 * 128


def test_too_large_a_kernel_is_refused_before_it_is_lowered():
    fits = VMEM_BYTES // (4 * 256 * 4)
    assert doubling(fits).problem() is None
    kernel = doubling(fits + 8)
    with pytest.raises(ValueError, match=r"doubling: needs 16\.0 MiB of VMEM .*, of 16"):
        # Tracing is enough: nothing is lowered, and no TPU is asked for.
        jax.eval_shape(kernel, jax.ShapeDtypeStruct((2 * fits + 16, 256), jnp.float32))


def test_runs_its_grid():
    x = jnp.arange(32 * 256, dtype=jnp.float32).reshape(32, 256)
    (out,) = interpreted(doubling(16), x)
    assert (out == 2 * x).all()


@pytest.mark.parametrize("waits", [True, False])
def test_races_are_found(waits):
    def body(x_hbm, out_ref, semaphore):
        copy = pltpu.make_async_copy(x_hbm, out_ref, semaphore)
        copy.start()
        if not waits:
            out_ref[...] = jnp.zeros_like(out_ref)
        copy.wait()

    x = jnp.ones((8, 128))
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    whole = pl.BlockSpec((8, 128), lambda i: (0, 0))
    anywhere, semaphore = pl.BlockSpec(memory_space=pl.ANY), pltpu.SemaphoreType.DMA
    kernel = Kernel(body, "copying", (1,), (x,), (anywhere,), (out,), (whole,), (semaphore,))
    if waits:
        interpreted(kernel, x)
    else:
        with pytest.raises(AssertionError, match="RACE DETECTED"):
            interpreted(kernel, x)
