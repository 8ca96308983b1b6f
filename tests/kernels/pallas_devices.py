"""What the tests of Pallas TPU kernels share: their interpreter, and the TPU's compiler."""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import textwrap

import jax
import pytest

from ratjax_kernels.pallas_call import interpreting

TOPOLOGIES = {
    "v5e": ("v5e:2x2", "default"),
    "v5p": ("v5:2x2x1", "megacore"),
    "v6e": ("v6e:2x2", "default"),
}
# The chip that fewer key/value heads and several chips are compiled for too: what differs from chip
# to chip is the kernels' memory and instructions, and those are tried on all three.
THOROUGH = "v6e"

_PREAMBLE = """
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name={name!r}, chip_config_name={chip!r},
        chips_per_host_bounds=(2, 2, 1), num_slices=1, wrap=(False,) * 3,
    )
    mesh = Mesh(topology.devices, ("x",))
    alone = NamedSharding(Mesh(topology.devices[:1], ("x",)), PartitionSpec())

    def array(*shape, dtype=jnp.bfloat16, sharding=alone):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def integers(*shape, sharding=alone):
        return array(*shape, dtype=jnp.int32, sharding=sharding)

    def report(function, *shapes, **settings):
        compiled = jax.jit(function, **settings).lower(*shapes).compile()
        text = compiled.as_text()
        kernels = text.count('custom_call_target="tpu_custom_call"')
        print("RESULT", kernels, compiled.memory_analysis().temp_size_in_bytes)
"""


def interpreted(function, *args, **switches):
    """`function(*args)` in the interpreter, every switch on; fails if a kernel raced its copies."""
    # The interpreter is a large program that runs once: what is not optimised is there sooner.
    program = jax.jit(
        lambda *args: function(*args), compiler_options={"xla_backend_optimization_level": 0}
    )
    with interpreting(**switches), contextlib.redirect_stdout(io.StringIO()) as said:
        out = jax.block_until_ready(program(*args))
    # The interpreter prints what it found, and goes on.
    assert "RACE DETECTED" not in said.getvalue(), said.getvalue()
    return out


def compiles_for_tpus(test):
    """Marks a test of `compiled`, which it calls with `chip`, a key of `TOPOLOGIES`."""
    missing = importlib.util.find_spec("libtpu") is None
    test = pytest.mark.skipif(missing, reason="needs libtpu")(test)
    test = pytest.mark.parametrize("chip", TOPOLOGIES)(test)
    return pytest.mark.tpu_compile(test)


def compiled(chip: str, *parts: str, thorough: str = "") -> list[tuple[int, int]]:
    """Compiles a program's functions for a chip, in a process of its own.

    libtpu reads its environment once, and only one process may hold it.

    Args:
      chip: a key of `TOPOLOGIES`.
      *parts: one program, each part with an indentation of its own: Python that calls
        `report(function, *shapes)`, the shapes made by `array` and `integers` (one device) or with
        `sharding=NamedSharding(mesh, ...)` (all four).
      thorough: a last part, for the chip `THOROUGH` alone.

    Returns:
      For each report, (kernels in the compiled program, bytes of temporary memory).
    """
    name, config = TOPOLOGIES[chip]
    source = textwrap.dedent(_PREAMBLE).format(name=name, chip=config)
    parts += (thorough,) if chip == THOROUGH else ()
    source += "".join(map(textwrap.dedent, parts))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [(int(kernels), int(temporary)) for _, kernels, temporary in lines]
