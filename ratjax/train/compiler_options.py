"""Options of XLA's compiler that training needs, each with its reason and date."""

from jax.sharding import Mesh

OPTIONS: dict[str, dict[str, str]] = {
    "tpu": {
        # 2026-11, libtpu 0.0.42: the pass moves reductions out of loops that add up microbatches;
        # on the gradient of the head, reduced in bfloat16 and added up in float32, it fails
        # ("RET_CHECK failure ... user->opcode() == HloOpcode::kAdd").
        "xla_disable_hlo_passes": "while-loop-all-reduce-code-motion",
    },
}


def compiler_options(mesh: Mesh | None) -> dict[str, str] | None:
    """What to give `jax.jit` for programs on a mesh; None: nothing."""
    return None if mesh is None else OPTIONS.get(mesh.devices.flat[0].platform)
