"""Models, batches and meshes for the tests on eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ratjax.config.mesh import MeshConfig
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.sharding import make_mesh

VOCAB, LENGTH, BATCH = 64, 16, 8

ATTENTION = ModelConfig(VOCAB, 16, 2, 4, 2, 4, 24)
MEMORY = dataclasses.replace(ATTENTION, memory=MemoryConfig(init="normal"))
# What the two leave out: the second embedding, a tied head, the other block, a memory that
# documents restart and that comes before the norm, saved activations.
OTHER = dataclasses.replace(
    ATTENTION,
    previous_token_embedding=True,
    tie_embeddings=True,
    output_gate=True,
    norm="pre",
    mlp="gelu",
    remat="save_products",
    memory=MemoryConfig(init="log_uniform", place="before_k_norm", reset_at_documents=True),
)
MODELS = {"attention": ATTENTION, "memory": MEMORY, "other": OTHER}

# data, fsdp, tensor, context
MESHES = [
    (8, 1, 1, 1),
    (1, 8, 1, 1),
    (2, 4, 1, 1),
    (2, 2, 2, 1),
    (2, 2, 1, 2),
    (1, 2, 2, 2),
    (2, 1, 1, 4),  # more devices along time than key/value heads
]

TRAIN = TrainConfig(
    learning_rate=1e-2,
    memory_learning_rate=3e-2,
    epsilon=1e-3,  # of the gradients' own size: AdamW else blows rounding up to whole steps
    warmup=0.0,
    z_loss=1e-3,
    recurrence_dilation=4,
    recurrence_local=3,
    loss_chunk=5,  # of 16 positions, or of 8 or 4 a device: with a remainder
    checkpoint_every=1,
    log_every=1,
    keep=10,
)


@functools.cache
def mesh_of(sizes):
    return make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


@functools.cache
def batch():
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, VOCAB, (2, BATCH, LENGTH), dtype=np.int32)
    mask = rng.random((BATCH, LENGTH)) < np.linspace(0, 1, BATCH)[:, None]  # none, ..., all
    starts = rng.random((BATCH, LENGTH)) < 0.1
    return jax.tree.map(jnp.asarray, Batch(tokens, targets, mask, starts))


def largest_gap(one, other):
    """The largest difference of two trees' numbers."""

    def gap(a, b):
        a, b = np.asarray(a), np.asarray(b)
        with np.errstate(invalid="ignore"):  # empty pages have infinite bounds
            return np.where(a == b, 0, np.abs(a - b)).max(initial=0)

    return max(gap(*pair) for pair in zip(*map(jax.tree.leaves, (one, other)), strict=True))
