"""Attention: projections, QK-norm, the optional memory, RoPE, and a pattern that does the rest.

The data flow is the same with and without the memory:

    q, k, v  ->  qk-norm  ->  memory over k, v  ->  rope on q, k  ->  pattern  ->  output

What prefill attends to, what the cache keeps and what decode reads belongs to the pattern.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Int32

from ratjax.config.model import ModelConfig
from ratjax.model.layers import RMSNorm, normal, rope, weight
from ratjax.model.memory import DecayMemory
from ratjax.model.remat import PROJECTIONS
from ratjax.shapes import (
    HeadState,
    Keys,
    Lengths,
    PRNGKeyArray,
    PromptKeys,
    Queries,
    Residual,
    Values,
)
from ratjax.sharding import attend_by_heads, mean_over_heads, out_sharding, serve_by_heads
from ratjax.sparsity.pattern import Both, Cache, Pattern, Reads

MemoryState = tuple[HeadState, HeadState]


class Attention(nnx.Module):
    """One attention layer. Weights are kept per head: [M, heads, D] in, [H, D, M] out."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        self.config = config
        m, h, g, d = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        q_key, k_key, v_key, out_key, gate_key, memory_key = jax.random.split(key, 6)
        self.w_q = normal(q_key, (m, h, d), config.init_std)
        if config.qk_init == "equal":
            self.w_k = nnx.Param(self.w_q[...][:, :: config.queries_per_kv_head])
        else:
            self.w_k = normal(k_key, (m, g, d), config.init_std)
        self.w_v = normal(v_key, (m, g, d), config.init_std)
        self.w_out = normal(out_key, (h, d, m), config.init_std)
        self.w_output_gate = (
            normal(gate_key, (m, h, d), config.init_std) if config.output_gate else None
        )
        self.q_norm = RMSNorm((h, d), config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm((g, d), config.norm_eps) if config.qk_norm else None
        # Its key is split off last: a pair's shared parameters start alike.
        self.memory = DecayMemory(config, config.memory, memory_key) if config.memory else None

    def project(self, x: Residual) -> tuple[Queries, Keys, Values]:
        """q (normalised), k (normalised unless the norm follows the memory) and v."""
        q = jnp.einsum("btm,mhd->bthd", x, weight(self.w_q, x.dtype))
        k = jnp.einsum("btm,mgd->btgd", x, weight(self.w_k, x.dtype))
        v = jnp.einsum("btm,mgd->btgd", x, weight(self.w_v, x.dtype))
        q, k, v = (checkpoint_name(a, PROJECTIONS) for a in (q, k, v))
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None and not self.norm_follows_memory:
            k = self.k_norm(k)
        return q, k, v

    @property
    def norm_follows_memory(self) -> bool:
        memory = self.config.memory
        return memory is not None and memory.place == "before_k_norm"

    def rotate(
        self, q: Queries, k: Keys | Both, positions: Int32[Array, "#B T"]
    ) -> tuple[Queries, Keys | Both]:
        """RoPE on queries and on the memory's keys, each at its own position."""
        if self.k_norm is not None and self.norm_follows_memory:
            k = jax.tree.map(self.k_norm, k)
        turn = partial(rope, positions=positions, theta=self.config.rope_theta)
        return turn(q), jax.tree.map(turn, k)

    def output(self, x: Residual, attended: Queries) -> Residual:
        """The output gate, where there is one, and the projection back to the residual."""
        if self.w_output_gate is not None:
            gate = jnp.einsum("btm,mhd->bthd", x, weight(self.w_output_gate, x.dtype))
            attended = attended * jax.nn.sigmoid(gate)
        w_out = weight(self.w_out, x.dtype)
        whole = out_sharding("batch", "time", "channels")
        return jnp.einsum("bthd,hdm->btm", attended, w_out, out_sharding=whole)

    def states(
        self,
        x: Residual,
        valid: Bool[Array, "B T"] | None = None,
        document_starts: Bool[Array, "B T"] | None = None,
        with_raw: bool = False,
    ) -> tuple[Queries, Keys | Both, Values | Both, MemoryState | None]:
        """What the pattern gets: rotated q and k, v, and the memory's last state (or None)."""
        q, k, v = self.project(x)
        if valid is not None:
            k = jnp.where(valid[..., None, None], k, 0)
            v = jnp.where(valid[..., None, None], v, 0)
        raw, state = (k, v), None
        if self.memory is not None:
            (k, v), state = self.memory(x, k, v, valid, document_starts)
        if with_raw:
            k, v = map(Both, (k, v), raw)
        q, k = self.rotate(q, k, jnp.arange(x.shape[1], dtype=jnp.int32)[None])
        return q, k, v, state

    def __call__(
        self,
        x: Residual,
        pattern: Pattern,
        document_starts: Bool[Array, "B T"] | None = None,
    ) -> Residual:
        """Whole sequences, no cache: training and scoring."""
        q, k, v, _ = self.states(x, None, document_starts, pattern.uses_raw)

        def attend(q: Queries, k: Keys | Both, v: Values | Both) -> Queries:
            return pattern.attend(q, k, v)[0]

        if pattern.uses_raw:  # an experiment on trained models: nothing trains so on a mesh
            return self.output(x, attend(q, k, v))
        return self.output(x, attend_by_heads(attend, q, k, v))

    def prefill(
        self,
        x: Residual,
        lengths: Lengths,
        pattern: Pattern,
        new_tokens: int,
        keys: PromptKeys | None,
    ) -> tuple[Residual, Cache, MemoryState | None, Reads]:
        """Prompts padded on the right to one length; the cache has room for `new_tokens`."""
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        q, k, v, state = self.states(x, valid=valid, with_raw=pattern.uses_raw)

        def serve(_, q, k, v, lengths, keys):
            attended, reads = pattern.attend(q, k, v, lengths, keys)
            cache = pattern.compress(q, k, v, lengths, new_tokens, keys)
            return (), (attended, cache, averaged(reads))

        _, (attended, cache, reads) = serve_by_heads(serve, (), q, k, v, lengths, keys)
        return self.output(x, attended), cache, state, reads

    def decode(
        self,
        x: Float[Array, "B 1 M"],
        positions: Lengths,
        pattern: Pattern,
        cache: Cache,
        layer: Int[Array, ""],
        state: MemoryState | None,
        keys: PromptKeys | None,
    ) -> tuple[Float[Array, "B 1 M"], Cache, MemoryState | None, Reads]:
        """One token a sequence. `cache` holds all layers of this run; only `layer` changes."""
        q, k, v = self.project(x)
        raw = k, v
        if self.memory is not None:
            (k, v), state = self.memory.step(x, k, v, state)
        if pattern.uses_raw:
            k, v = map(Both, (k, v), raw)
        q, k = self.rotate(q, k, positions[:, None])

        def serve(cache, layer, q, k, v, keys):
            cache = cache.append(layer, k, v)
            attended, reads = pattern.decode(q, cache.layer(layer), keys)
            return cache, (attended, averaged(reads))

        cache, (attended, reads) = serve_by_heads(serve, cache, layer, q, k, v, keys)
        return self.output(x, attended), cache, state, reads


def averaged(reads: Reads) -> Reads:
    """Entries read, averaged over the query heads of all devices; hits stay with their heads."""
    means = (mean_over_heads(count) for count in (reads.read, reads.visible))
    return Reads(*means, reads.hits)
