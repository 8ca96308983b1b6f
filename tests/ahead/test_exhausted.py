import dataclasses

import jax
import pytest

from ratjax.ahead.exhausted import out_of_memory
from ratjax.config.presets import preset
from ratjax.config.train import TrainConfig

MODEL = dataclasses.replace(preset("olmo2_1b"), dtype="bfloat16")
TRAIN = TrainConfig(microbatches=2)
LENGTH = 4096


def said(message):
    return out_of_memory(jax.errors.JaxRuntimeError(message), MODEL, TRAIN, LENGTH)


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6442450944 bytes.",
        "RESOURCE_EXHAUSTED: Out of memory allocating 6442450944 bytes.",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6.00GiB.",
    ],
)
def test_at_run_time_the_fields_are_named_with_their_values(words):
    assert said(words) == (
        "out of memory (6.00 GiB more were asked for): raise train.microbatches=2, or set "
        "model.remat=full (now none), or lower train.loss_chunk=1024, or spread the run over more "
        "devices with mesh.fsdp or mesh.tensor"
    )


def test_at_compilation_the_largest_array_decides():
    text = said(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 41.20G of 31.25G hbm. Exceeded hbm capacity by 9.95G.\n\n"
        "  Largest program allocations in hbm:\n\n"
        "  1. Size: 12.25G\n"
        '     Operator: op_type="dot" op_name="jit(train_step)/dot_general"\n'
        "     Shape: f32[8,4096,100352]{2,1,0:T(8,128)}\n"
        "     Unpadded size: 12.25G\n"
        "     XLA label: fusion.1 = fusion(x)\n"
        "     Allocation type: HLO temp\n"
    )
    assert text.startswith("out of memory: the step needs 41.20 GiB of hbm where there are 31.25;")
    assert "f32[8,4096,100352] (12.25 GiB): raise train.microbatches" in text
    assert "\n" not in text


def test_no_field_mends_a_kernel_that_is_too_large():
    text = said(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.50M of 16.00M vmem."
    )
    assert text.startswith("out of memory: the kernel needs 20.5 MiB of vmem where there are 16.0")
    assert "train." not in text


def test_other_errors_are_left_alone():
    assert said("INTERNAL: a kernel failed") is None
    assert out_of_memory(ValueError("RESOURCE_EXHAUSTED"), MODEL, TRAIN, LENGTH) is None
