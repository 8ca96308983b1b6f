import importlib.util

import jax
import jax.numpy as jnp
import pytest

from ratjax.ahead.overflow import MIB, Buffer, arguments, parse_overflow, remedy
from ratjax.ahead.report import overflow_json, overflow_lines
from ratjax.config.presets import preset
from ratjax.model.parameters import abstract_parameters
from tests.ahead.programs import OVERFLOW
from tests.kernels.pallas_devices import compiled

GIB = 2**30


def test_what_the_compiler_says():
    found = parse_overflow(OVERFLOW)
    assert found.memory == "hbm"
    assert (found.used, found.available) == (int(15.78 * GIB), int(15.75 * GIB))
    scores, argument, result, embedding = found.buffers
    assert (scores.bytes, scores.dims, scores.kind) == (GIB, (16, 4096, 4096), "temporary")
    assert scores.made_by.endswith("dot_general")
    assert (argument.kind, result.kind) == ("argument", "result")
    assert (embedding.bytes, embedding.shape) == (392 * 2**20, "bf16[100352,2048]")


def test_other_messages():
    short = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.00T) exceeds available HBM (95.74G)."
    )
    found = parse_overflow(short)
    assert (found.used, found.available, found.buffers) == (2**44, int(95.74 * GIB), ())
    assert parse_overflow("INTERNAL: something else") is None


TEMPORARIES = (
    "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem "
    "while allocating on stack for %f.1 = f32[4096,1024]{1,0:T(8,128)} custom-call(%x.1), "
    'custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/pallas_call"}. Scoped '
    "allocation with size 32.00M and limit 16.00M exceeded scoped vmem limit by 16.00M. It should "
    "not be possible to run out of scoped vmem - \nSee https://openxla.org/xla/errors/error_1001"
)
OPERANDS = (
    "RESOURCE_EXHAUSTED: Allocation (size=163840000) would exceed memory (size=134217728) :: "
    "#allocation2 [shape = 'f32[40000,1024]{1,0:T(8,128)}', space=vmem, size = 0x9c40000, scoped, "
    "tag = 'scratch operand'] :: f.1"
)
USED = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.5M of 16.00M vmem."


@pytest.mark.parametrize(
    ("message", "used", "available", "kernel"),
    [
        (TEMPORARIES, 32 * MIB, 16 * MIB, "jit(f)/pallas_call"),
        (OPERANDS, 163840000, 134217728, ""),
        (USED, int(20.5 * MIB), 16 * MIB, ""),
    ],
)
def test_a_kernel_that_is_too_large(message, used, available, kernel):
    found = parse_overflow(message)
    assert found == ("vmem", used, available, (), kernel)
    assert overflow_json(found)["hbm_bytes_per_chip"] is None
    [line] = overflow_lines(found, preset("olmo2_1b"), 4096)
    assert line.startswith(f"does not fit: the kernel{kernel and ' ' + kernel} needs ")
    assert f"{used / MIB:.1f} MiB of vmem where there are {available / MIB:.1f}" in line


TOO_LARGE = """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
    from ratjax.ahead.overflow import parse_overflow

    def kernel(x, out, scratch):
        scratch[...] = x[...]
        out[...] = scratch[...]

    def copy(x):
        scratch = pltpu.VMEM(x.shape, x.dtype)
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype),
                              scratch_shapes=[scratch])(x)

    for rows in (4096, 40000):
        try:
            report(copy, array(rows, 1024, dtype=jnp.float32))
        except jax.errors.JaxRuntimeError as error:
            found = parse_overflow(str(error))
            print("RESULT", int(found.memory == "vmem"), found.used)
"""


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_compiler_still_says_so():
    assert compiled("v5e", TOO_LARGE) == [(1, 32 * MIB), (1, 40000 * 1024 * 4)]


@pytest.mark.parametrize(
    ("dims", "kind", "fields"),
    [
        ((100352, 2048), "argument", "mesh.fsdp or mesh.tensor"),
        ((16, 4096, 4096), "temporary", "fell back to XLA"),
        ((2, 1024, 100352), "temporary", "train.loss_chunk"),
        ((2, 1024, 25088), "temporary", "train.loss_chunk"),  # its vocabulary over four
        ((2048, 100352), "temporary", "gradients"),
        ((16, 2, 4096, 2048), "temporary", "model.remat=full"),
        ((2, 4096, 8192), "temporary", "train.microbatches"),
    ],
)
def test_the_field_that_helps(dims, kind, fields):
    buffer = Buffer(1, "", dims, "", kind)
    assert fields in remedy(buffer, preset("olmo2_1b"), length=4096)


def test_inference_has_fields_of_its_own():
    cache = Buffer(1, "", (32, 32, 4224, 32, 128), "", "argument")
    model = preset("olmo2_7b")
    shapes = [array.shape for array in abstract_parameters(model).values() if array.ndim > 1]
    assert "needle.batch_size" in remedy(cache, model, 4096, trains=False)
    assert model.hidden_size == 4096 and any(4096 in shape for shape in shapes)
    for shape in shapes:  # one of whose sizes may well be that of the context
        weights = Buffer(1, "", shape, "", "argument")
        assert "more memory" in remedy(weights, model, 4096, trains=False)
        one_layer = weights._replace(dims=shape[1:], kind="temporary")
        assert "more memory" in remedy(one_layer, model, 4096, trains=False)


def test_arguments_where_the_compiler_names_nothing():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    small, large = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in ((2, 3), (40, 50))
    )
    found = arguments({"a": small, "b": [large]})
    assert [(b.bytes, b.shape, b.kind) for b in found] == [
        (4000, "bfloat16[40,50]", "argument"),
        (12, "bfloat16[2,3]", "argument"),
    ]


def test_lines_name_sizes_and_fields():
    text = overflow_lines(parse_overflow(OVERFLOW), preset("olmo2_1b"), 4096)
    assert "needs 15.78 GiB of hbm where there are 15.75" in text[0]
    assert text[1].split()[:4] == ["1.000", "GiB", "temporary", "f32[16,4096,4096]"]
    assert "fell back to XLA" in text[2]
