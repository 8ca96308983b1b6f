"""The tables of flags, and that the TPU's compiler knows what is in them."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from launch.pods.machines import MACHINES, chips_per_host, gke_machine
from launch.pods.pod import rented
from launch.pods.xla_flags import GPU_FLAGS, TPU_FLAGS, joined, tpu_flags
from ratjax.ahead import libtpu
from ratjax.ahead.topology import CHIPS

PROGRAM = textwrap.dedent(
    """
    import sys
    from ratjax.ahead.topology import parse_topology
    from ratjax.ahead.libtpu import use_libtpu
    use_libtpu()
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    devices = parse_topology(sys.argv[1]).devices()
    rows = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec("x"))
    shape = jax.ShapeDtypeStruct((256, 256), "bfloat16", sharding=rows)
    jax.jit(lambda a: a @ a.T).lower(shape).compile()
    print("compiled")
    """
)


def compiled(topology, flags):
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, topology], env=environment, capture_output=True, text=True
    )
    return "compiled" in done.stdout, done.stderr


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_knows_every_flag(topology):
    if libtpu.folder() is None:
        pytest.skip("needs libtpu")
    fine, said = compiled(topology, joined(tpu_flags(topology.split(":")[0], slices=2)))
    assert fine, said


@pytest.mark.tpu_compile
def test_the_compiler_refuses_others():
    if libtpu.folder() is None:
        pytest.skip("needs libtpu")
    fine, said = compiled("v6e:2x2", "--xla_tpu_no_such_flag=true")
    assert not fine and "xla_tpu_no_such_flag" in said


def test_every_flag_has_a_reason_a_source_and_a_date():
    for flag in (*TPU_FLAGS, *GPU_FLAGS):
        assert len(flag.reason) > 30 and flag.source and re.fullmatch(r"20\d\d-[01]\d", flag.date)
        assert set(flag.chips) <= CHIPS.keys()
        assert re.fullmatch(r"(xla|megascale)_\w+", flag.name) and " " not in flag.value


@pytest.mark.parametrize("chip", CHIPS)
def test_no_flag_is_given_twice(chip):
    one, several = (tpu_flags(chip, slices) for slices in (1, 2))
    assert set(one) < set(several)
    assert not any(flag.several_slices for flag in one)
    names = [flag.name for flag in several]
    assert len(set(names)) == len(names) and names[0] == "xla_tpu_scoped_vmem_limit_kib"


def test_every_chip_can_be_rented():
    assert MACHINES.keys() == CHIPS.keys()


@pytest.mark.parametrize(
    ("name", "hosts", "chips", "machine"),
    [
        ("v5litepod-1", 1, 1, "ct5lp-hightpu-1t"),
        ("v5litepod-8", 1, 8, "ct5lp-hightpu-8t"),
        ("v5litepod-16", 4, 4, "ct5lp-hightpu-4t"),
        ("v5p-8", 1, 4, "ct5p-hightpu-4t"),
        ("v5p:4x4x4", 16, 4, "ct5p-hightpu-4t"),
        ("v6e-8", 1, 8, "ct6e-standard-8t"),
        ("v6e-256", 64, 4, "ct6e-standard-4t"),
    ],
)
def test_machines_of_a_slice(name, hosts, chips, machine):
    topology = rented(name)
    assert (topology.hosts, chips_per_host(topology)) == (hosts, chips)
    assert gke_machine(topology) == machine
