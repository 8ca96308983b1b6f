"""Compiles recorded launches to machine code for a GPU that need not be there."""

import dataclasses
import pathlib
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ratjax_kernels.triton_call import Launch

_TYPES = {
    "float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32", "int8": "*i8",
    "bool": "*i1", "uint32": "*u32",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one program takes of a multiprocessor.

    Attributes:
      registers: a thread's registers.
      shared: bytes of shared memory.
      spilled: bytes of a thread's registers that went to memory.
      code: bytes of machine code.
    """

    registers: int
    shared: int
    spilled: int
    code: int


def compile_ahead(launch: Launch, capability: int) -> Usage:
    """Compiles `launch` for a compute capability, such as 80, 90 or 100.

    Raises:
      RuntimeError, or Triton's own errors: the kernel does not compile.
    """
    names = launch.kernel.arg_names
    arrays = (*launch.inputs, *launch.outputs)
    signature = {
        name: _TYPES[array.dtype.name] for name, array in zip(names, arrays, strict=False)
    } | dict.fromkeys(launch.constants, "constexpr")
    compiled = triton.compile(
        ASTSource(
            fn=launch.kernel,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in launch.constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in range(len(arrays))},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
    )
    cubin = compiled.asm["cubin"]
    registers, spilled = _resources(cubin)
    return Usage(registers, compiled.metadata.shared, spilled, len(cubin))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes, as the tool beside Triton's assembler reads them."""
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The stack also holds small arrays, of which Triton makes none: what is there was spilled.
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed {text!r}, which names no registers")
    return int(found[1]), int(found[2])
