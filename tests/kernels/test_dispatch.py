"""Which implementation `None` means, by the devices that a program is compiled for."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from ratjax_kernels import decay_scan, prefer, triton_call
from ratjax_kernels.dispatch import platform


def mesh_of(kind: str) -> AbstractMesh:
    return AbstractMesh((1,), ("x",), abstract_device=AbstractDevice(kind, 2, kind))


def test_platform_is_the_meshs():
    assert platform() == "cpu"
    for kind in ("tpu", "gpu"):
        with jax.sharding.use_abstract_mesh(mesh_of(kind)):
            assert platform() == kind
    with jax.set_mesh(Mesh(np.array(jax.devices()[:1]), ("x",))):
        assert platform() == "cpu"


def test_a_program_traced_for_both_gets_each_ones_kernel():
    """Tracing is cached by JAX, the mesh's devices included: no program is mistaken for another."""
    array = jnp.ones((1, 16, 8, 128))
    step = jax.jit(lambda x: decay_scan(x, x, x)[0])

    def traced():
        return str(step.trace(array).jaxpr)

    assert "decay_scan_forward" not in traced()
    with jax.sharding.use_abstract_mesh(mesh_of("tpu")):
        assert "decay_scan_forward" in traced()
        with prefer("reference"):
            jax.clear_caches()
            assert "decay_scan_forward" not in traced()
        jax.clear_caches()
    assert "decay_scan_forward" not in traced()


def test_old_and_other_gpus_get_no_triton_kernel(monkeypatch):
    array = jnp.ones((1, 16, 8, 128), jnp.bfloat16)
    monkeypatch.setattr(triton_call, "INTERPRETED", False)
    monkeypatch.setattr(triton_call, "platform", lambda: "gpu")
    for capability, problem in (
        ("7.5", "needs compute capability 8.0, this GPU has 7.5"),
        ("8.0", None),
        ("12.0", None),
        ("gfx942", "needs a CUDA device"),
        ("", "needs a CUDA device"),
    ):
        monkeypatch.setattr(triton_call, "capability", lambda capability=capability: capability)
        assert triton_call.device_problem(array) == problem
