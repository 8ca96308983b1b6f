"""A model as a flat dictionary of named arrays, and back.

The names are the attribute paths of the modules, such as `blocks/attention/w_q`; layers are
stacked along each array's first axis. Optimizers, checkpoints and converters speak this form:
it says nothing of Flax, so none of them has to.
"""

import collections
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ratjax.config.model import ModelConfig
from ratjax.model.decoder import Decoder
from ratjax.shapes import Array, PRNGKeyArray

Parameters = dict[str, Array]
AbstractParameters = dict[str, jax.ShapeDtypeStruct]


def is_memory(name: str) -> bool:
    """Whether a parameter belongs to the decaying memory."""
    return "memory" in name.split("/")


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf that `jax.tree_util.tree_flatten_with_path` found in a model."""
    parts = [
        str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path
    ]
    if parts[-1] == "value":  # the inside of an nnx.Param
        parts.pop()
    return "/".join(parts)


def to_parameters(model: Decoder) -> Parameters:
    """The model's arrays by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {name_of(path): leaf for path, leaf in leaves}


@functools.cache
def _layout(config: ModelConfig) -> tuple[tuple[str, ...], tuple[jax.ShapeDtypeStruct, ...], Any]:
    abstract = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    return tuple(name_of(path) for path, _ in leaves), tuple(x for _, x in leaves), structure


def abstract_parameters(config: ModelConfig) -> AbstractParameters:
    """Every parameter's shape and dtype; allocates nothing."""
    names, leaves, _ = _layout(config)
    return dict(zip(names, leaves, strict=True))


def to_model(config: ModelConfig, parameters: Mapping[str, Any]) -> Decoder:
    """The model that has these parameters. Works on traced arrays, inside `jax.jit`."""
    names, _, structure = _layout(config)
    return jax.tree.unflatten(structure, [parameters[name] for name in names])


def initial_parameters(
    config: ModelConfig, places: Mapping[str, jax.sharding.Sharding] | None = None
) -> Callable[[PRNGKeyArray], Parameters]:
    """A compiled function from a random key to fresh parameters.

    The numbers do not depend on `places`, which says where each array is made (None: on the
    default device).
    """
    return jax.jit(lambda key: to_parameters(Decoder(config, key)), out_shardings=places)


def inference_dtypes(config: ModelConfig) -> dict[str, jnp.dtype]:
    """Each parameter's dtype for inference: the compute dtype, to which every use casts it.

    In bfloat16 this halves the weights and changes no result: what is used in float32 (the
    norms' weights, and embeddings that are added up before they are cast) stays in float32.
    """
    added = config.previous_token_embedding

    def dtype(name: str, stored: jnp.dtype) -> jnp.dtype:
        kept = name.endswith("norm/weight") or (added and name.endswith("embedding"))
        return stored if kept else jnp.dtype(config.dtype)

    return {name: dtype(name, array.dtype) for name, array in abstract_parameters(config).items()}


def in_compute_dtype(model: Decoder) -> Decoder:
    """The model with its parameters as `inference_dtypes` says; for traced and concrete arrays."""
    dtypes = inference_dtypes(model.config)
    parameters = to_parameters(model)
    return to_model(model.config, {n: leaf.astype(dtypes[n]) for n, leaf in parameters.items()})


def checksum(model: Decoder) -> str:
    """Tells trained models apart: each parameter's bits summed modulo 2^32, in hexadecimal.

    Integer sums do not depend on the order, so every device finds the same, and so does a model
    whose layers are not stacked.
    """
    sums: dict[str, int] = collections.defaultdict(int)
    for name, total in _bit_sums(to_parameters(model)).items():
        sums[re.sub(r"^blocks/\d+/", "blocks/", name)] += int(total)
    return " ".join(f"{sums[name] % 2**32:08x}" for name in sorted(sums))


@jax.jit
def _bit_sums(parameters: Parameters) -> Parameters:
    def total(leaf: Array) -> Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(leaf, unsigned), dtype=jnp.uint32)

    return jax.tree.map(total, parameters)
