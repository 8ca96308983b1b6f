"""The logical axes of every parameter, by name, and so where it lies on a mesh."""

from jax.sharding import Mesh

from ratjax.config.model import ModelConfig
from ratjax.model.parameters import AbstractParameters, abstract_parameters
from ratjax.sharding import first_device, sharding

# By the last parts of the name; `layers` comes in front where layers are stacked.
PARAMETER_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "embed"),
    "previous_embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "norm/weight": ("norm",),
    "attention_norm/weight": ("norm",),
    "mlp_norm/weight": ("norm",),
    "attention/w_q": ("embed", "heads", "head_dim"),
    "attention/w_k": ("embed", "kv_heads", "head_dim"),
    "attention/w_v": ("embed", "kv_heads", "head_dim"),
    "attention/w_output_gate": ("embed", "heads", "head_dim"),
    "attention/w_out": ("heads", "head_dim", "embed"),
    "q_norm/weight": ("heads", "head_dim"),
    "k_norm/weight": ("kv_heads", "head_dim"),
    "memory/weight": ("embed", "kv_heads", "head_dim"),
    "memory/bias": ("kv_heads", "head_dim"),
    "mlp/w_up": ("embed", "mlp"),
    "mlp/w_gate": ("embed", "mlp"),
    "mlp/w_down": ("mlp", "embed"),
}


def parameter_axes(name: str) -> tuple[str, ...]:
    """The logical axes of a parameter, such as `blocks/attention/w_q`."""
    parts = name.split("/")
    axes = PARAMETER_AXES["/".join(parts[-2:])]
    return ("layers", *axes) if parts[0] == "blocks" else axes


def placed_parameters(config: ModelConfig, mesh: Mesh | None = None) -> AbstractParameters:
    """`abstract_parameters` that know where they lie: on a mesh, or on the first device."""
    return {
        name: array.update(
            sharding=first_device() if mesh is None else sharding(mesh, *parameter_axes(name))
        )
        for name, array in abstract_parameters(config).items()
    }
