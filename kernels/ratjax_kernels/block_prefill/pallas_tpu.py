"""`block_prefill` through the TPU kernels of `pallas_kernels`, and its gradient rule.

Kernels read [B, heads, T, D]. A tile is 128 queries of one head, the lanes of a register: fewer
queries choose fewer blocks together, which is what is computed. Where neighbours agree that is
little more than what each chose; where they choose at random, or the budget is large, it comes near
dense attention, as it must without gathering queries, for which a TPU has no fast way.

Why it should be fast, none of it timed: keys and values cross from HBM once a head, whatever is
chosen. Blocks of 64 are taken eight at a time, 512 keys by 128 queries, which v5p's compiler
schedules in 501 cycles forward and 904 backward, matrix units issuing in 29 % and 62 % of their
slots (1024 keys at once: 425 a half, but lists end in larger leftovers). Backward recomputes scores
once for all gradients, which gather in VMEM in float32. A head's keys and values and both their
gradients take 48 MiB of it at T = 32768 in bfloat16, keys and values alone 16: beyond that the
gradient, and three times as far the whole operation, is XLA's.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.block_prefill import pallas_kernels, xla
from ratjax_kernels.block_prefill.pallas_kernels import Sizes
from ratjax_kernels.block_prefill.pallas_lists import bits_of, lists_of
from ratjax_kernels.dispatch import log_once
from ratjax_kernels.pallas_call import LANES, Kernel, dtype_problem, pad_to

_TILE = LANES
_ROWS = 16  # of a register of bfloat16; blocks are whole ones
_KEYS = 512  # treated at once, in whole blocks
_VMEM = 56 * 2**20  # a v5p has 64 MiB, others 128


def limits_of_block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.dispatch.Operation`."""
    cut = _Cut.of(q, k, jnp.result_type(q, k, v), block_size)
    return dtype_problem(q, k, v) or cut.forward().problem()


def block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    dtype = jnp.result_type(q, k, v)
    out = _attention(block_size, *(x.astype(dtype) for x in (q, k, v)), block_ids)
    return out.astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(block_size, q, k, v, block_ids):
    return _forward(block_size, q, k, v, block_ids)[0]


def _forward(block_size, q, k, v, block_ids):
    out, lse = merge_vmap(functools.partial(_run_forward, block_size))(q, k, v, block_ids)
    return out, (q, k, v, block_ids, out, lse)


def _backward(block_size, residuals, d_out):
    q, k, v, block_ids, *_ = residuals
    problem = _Cut.of(q, k, q.dtype, block_size).backward().problem()
    if problem:  # prompts may be longer than what is trained on
        log_once(f"block_prefill: pallas_tpu's gradient {problem}; using xla's")
        attend = functools.partial(xla.block_prefill, block_ids=block_ids, block_size=block_size)
        return *jax.vjp(attend, q, k, v)[1](d_out), None
    run = merge_vmap(functools.partial(_run_backward, block_size))
    return *run(*residuals, d_out), None


_attention.defvjp(_forward, _backward)


def _run_forward(block_size, q, k, v, ids):
    cut = _Cut.of(q, k, q.dtype, block_size)
    q, k, v = map(_swap, (q, k, v))
    chosen = cut.chosen(ids)
    out, lse = cut.forward()(*chosen, cut.tiled(q, 2), cut.blocks(k), cut.blocks(v))
    return _swap(out[:, :, : cut.length]), lse


def _run_backward(block_size, q, k, v, ids, out, lse, d_out):
    cut = _Cut.of(q, k, q.dtype, block_size)
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = cut.tiled(_swap(delta)[:, :, None], 3)
    q, k, v, d_out = map(_swap, (q, k, v, d_out))
    of_queries = (cut.tiled(q, 2), cut.tiled(d_out, 2), lse, delta)
    dq, dk, dv = cut.backward()(*cut.chosen(ids), *of_queries, cut.blocks(k), cut.blocks(v))
    slopes = (dq[:, :, : cut.length], cut.positions(dk), cut.positions(dv))
    return tuple(_swap(x).astype(cut.dtype) for x in slopes)


def _swap(x):
    """[B, T, heads, ...] <-> [B, heads, T, ...]."""
    return jnp.swapaxes(x, 1, 2)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Sizes of a call, in tiles of queries and blocks of keys, and its kernels."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    channels: int
    dtype: jnp.dtype
    sizes: Sizes

    @staticmethod
    def of(q, k, dtype, block_size: int) -> "_Cut":
        batch, length, heads, channels = q.shape
        rows = -(-block_size // _ROWS) * _ROWS
        sizes = Sizes(block_size, rows, max(1, _KEYS // rows))
        return _Cut(batch, length, heads, k.shape[2], channels, jnp.dtype(dtype), sizes)

    @property
    def count(self) -> int:
        return -(-self.length // self.sizes.block)

    @property
    def tiles(self) -> int:
        return -(-self.length // _TILE)

    @property
    def entries(self) -> int:
        return -(-self.count // self.sizes.at_once) * self.sizes.at_once

    def tiled(self, x, axis: int, value=0):
        """`x` padded to whole tiles of queries."""
        return pad_to(x, axis, self.tiles * _TILE, value)

    def blocks(self, x):
        """[B, G, T, D] -> [B, G, count * rows, D], every block in whole registers."""
        x = pad_to(x, 2, self.count * self.sizes.block)
        x = x.reshape(*x.shape[:2], self.count, self.sizes.block, -1)
        return pad_to(x, 3, self.sizes.rows).reshape(*x.shape[:2], -1, self.channels)

    def positions(self, x):
        """The opposite of `blocks`."""
        x = x.reshape(*x.shape[:2], self.count, self.sizes.rows, -1)[:, :, :, : self.sizes.block]
        return x.reshape(*x.shape[:2], -1, self.channels)[:, :, : self.length]

    def chosen(self, ids):
        """Lists for the scalar core, and bits with the queries along the lanes."""
        bits = bits_of(self.tiled(ids, 2, -1), self.count, self.sizes.block)
        lists = lists_of(bits, self.count, _TILE, self.sizes.at_once)
        return lists, jnp.swapaxes(bits, 2, 3)

    def forward(self) -> Kernel:
        """lists, bits, q, k, v -> out, lse [B, H, 1, T]."""
        at = _Blocks(self, lambda b, h, i: (b, h, jax.lax.div(h, self.heads // self.kv_heads), i))
        return self._kernel(
            pallas_kernels.forward_kernel,
            "block_prefill_forward",
            (self.batch, self.heads, self.tiles),
            (at.entries(), at.words(), at.queries(), at.keys(), at.keys()),
            (at.queries(), at.row()),
            products=2,
        )

    def backward(self) -> Kernel:
        """lists, bits, q, d_out, lse, delta, k, v -> dq, dk, dv."""
        group = self.heads // self.kv_heads
        at = _Blocks(self, lambda b, g, r, i: (b, g * group + r, g, i))
        of_queries = (at.queries(), at.queries(), at.row(), at.row())
        return self._kernel(
            pallas_kernels.backward_kernel,
            "block_prefill_backward",
            (self.batch, self.kv_heads, group, self.tiles),
            (at.entries(), at.words(), *of_queries, at.keys(), at.keys()),
            (at.queries(), at.keys(jnp.float32), at.keys(jnp.float32)),
            products=5,
        )

    def _kernel(self, body, name, grid, inputs, outputs, products):
        arrays = [x for x, _ in (*inputs, *outputs)]
        scores = self.sizes.at_once * self.sizes.rows * _TILE
        # Half of dense attention: what is computed is known only when it runs.
        pairs = self.batch * self.heads * self.length**2 // 4
        return Kernel(
            functools.partial(body, self.sizes),
            name,
            grid,
            *zip(*inputs, strict=True),
            *zip(*outputs, strict=True),
            semantics=("parallel", "parallel") + ("arbitrary",) * (len(grid) - 2),
            cost=pl.CostEstimate(
                flops=2 * products * pairs * self.channels,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
            ),
            # Scores, probabilities, their gradients and what products are fed with.
            values=4 * 6 * scores,
            vmem=_VMEM,
        )


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Arrays with their blocks.

    Attributes:
      cut: the sizes.
      at: turns a step's indices into (batch, query head, key head, tile of queries).
    """

    cut: _Cut
    at: Callable

    def entries(self):
        """A tile's list, in scalar memory."""
        shape = (self.cut.batch, self.cut.heads, self.cut.tiles, 1, 1 + self.cut.entries)
        block = (None, None, None, 1, shape[-1])
        index = self._index(lambda b, h, g, i: (b, h, i, 0, 0))
        return self._pair(shape, jnp.int32, block, index, memory_space=pltpu.SMEM)

    def words(self):
        """A tile's bits."""
        words = -(-self.cut.count // 32)
        shape = (self.cut.batch, self.cut.heads, words, self.cut.tiles * _TILE)
        index = self._index(lambda b, h, g, i: (b, h, 0, i))
        return self._pair(shape, jnp.int32, (None, None, words, _TILE), index)

    def queries(self):
        cut = self.cut
        shape = (cut.batch, cut.heads, cut.tiles * _TILE, cut.channels)
        index = self._index(lambda b, h, g, i: (b, h, i, 0))
        return self._pair(shape, cut.dtype, (None, None, _TILE, cut.channels), index)

    def row(self):
        """A float32 number a query."""
        shape = (self.cut.batch, self.cut.heads, 1, self.cut.tiles * _TILE)
        index = self._index(lambda b, h, g, i: (b, h, 0, i))
        return self._pair(shape, jnp.float32, (None, None, 1, _TILE), index)

    def keys(self, dtype=None):
        """All of a head's keys, or what belongs to them, for as long as its queries pass."""
        cut = self.cut
        block = (cut.count * cut.sizes.rows, cut.channels)
        index = self._index(lambda b, h, g, i: (b, g, 0, 0))
        shape = (cut.batch, cut.kv_heads, *block)
        settings = {"pipeline_mode": pl.Buffered(1)}
        return self._pair(shape, dtype or cut.dtype, (None, None, *block), index, **settings)

    def _index(self, pick):
        return lambda *step: pick(*self.at(*step))

    def _pair(self, shape, dtype, block, index, **settings):
        return jax.ShapeDtypeStruct(shape, dtype), pl.BlockSpec(block, index, **settings)
