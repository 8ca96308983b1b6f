"""`decay_scan` through the TPU kernels of `ratjax_kernels.scan.pallas_kernels`.

The kernels see [B, T, rows, 128]: heads of 128 channels as they are, others flattened and padded to
whole registers. T is padded to whole tiles with gates that keep the state, so padding changes
nothing before it and carries the last state through.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.pallas_call import dtype_problem, interpret
from ratjax_kernels.scan import pallas_kernels

_LANES, _SUBLANES = 128, 8
# Bytes of a tile: its five inputs and three outputs, twice for the pipeline, and two float32 copies
# stay within the 16 MiB of VMEM that a kernel may use by default.
_TILE = 2**19
_MOST_ROWS = 32


def limits_of_decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.dispatch.Operation`."""
    return dtype_problem(gate_logits, k, v)


@jax.custom_vjp
def decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.scan.api`; the states come in and go out in float32."""
    return _forward(gate_logits, k, v, k_0, v_0)[0]


def _forward(gate_logits, k, v, k_0, v_0):
    tiles = _Tiles(k)
    inputs = (tiles.flat(gate_logits, jnp.inf), tiles.flat(k), tiles.flat(v))
    k_mem, v_mem, k_in, v_in, k_last, v_last = _launch_forward(
        tiles, inputs, tuple(tiles.flat_state(x) for x in (k_0, v_0))
    )
    outputs = (*map(tiles.whole, (k_mem, v_mem)), *map(tiles.whole_state, (k_last, v_last)))
    return outputs, (gate_logits, k, v, k_in, v_in)


def _backward(residuals, cotangents):
    gate_logits, k, v, k_in, v_in = residuals
    tiles = _Tiles(k)
    inputs = (tiles.flat(gate_logits, jnp.inf), tiles.flat(k), tiles.flat(v))
    d_mem = tuple(tiles.flat(x) for x in cotangents[:2])
    d_last = tuple(tiles.flat_state(x) for x in cotangents[2:])
    *wide, dk_0, dv_0 = _launch_backward(tiles, inputs, (k_in, v_in), d_mem, d_last)
    return (*map(tiles.whole, wide), *map(tiles.whole_state, (dk_0, dv_0)))


decay_scan.defvjp(_forward, _backward)


class _Tiles:
    """How [B, T, G, D] is laid out, as [B, T, rows, 128], and cut."""

    def __init__(self, k):
        self.shape = k.shape
        self.batch, self.length, heads, head_dim = k.shape
        self.channels = heads * head_dim
        native = head_dim == _LANES and heads % _SUBLANES == 0
        needed = heads if native else -(-self.channels // _LANES)
        self.rows = -(-needed // _SUBLANES) * _SUBLANES
        self.block = max(
            n for n in range(_SUBLANES, _MOST_ROWS + 1, _SUBLANES) if self.rows % n == 0
        )
        row = self.block * _LANES * k.dtype.itemsize
        self.steps = min(_TILE // row, -(-self.length // 8) * 8)
        self.tiles = -(-self.length // self.steps)
        self.padded = self.tiles * self.steps

    @property
    def grid(self):
        return self.batch, self.rows // self.block, self.tiles

    def flat(self, x, fill=0.0):
        """[B, T, G, D] -> [B, padded T, rows, 128]."""
        x = self._rows(x)
        widths = [(0, 0), (0, self.padded - self.length), (0, 0), (0, 0)]
        return jnp.pad(x, widths, constant_values=fill)

    def flat_state(self, x):
        """[B, G, D] -> [B, rows, 128]."""
        return self._rows(x[:, None])[:, 0]

    def _rows(self, x):
        x = x.reshape(*x.shape[:2], self.channels)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, self.rows * _LANES - self.channels)])
        return x.reshape(*x.shape[:2], self.rows, _LANES)

    def whole(self, x):
        """[B, padded T, rows, 128] -> [B, T, G, D]."""
        x = x[:, : self.length].reshape(self.batch, self.length, self.rows * _LANES)
        return x[..., : self.channels].reshape(self.shape)

    def whole_state(self, x):
        """[B, rows, 128] -> [B, G, D]."""
        x = x.reshape(self.batch, self.rows * _LANES)[:, : self.channels]
        return x.reshape(self.batch, *self.shape[2:])

    def wide(self, reverse=False):
        """A tile of [B, padded T, rows, 128]."""
        last = self.tiles - 1
        return pl.BlockSpec(
            (None, self.steps, self.block, _LANES),
            lambda b, c, t: (b, last - t if reverse else t, c, 0),
        )

    def entering(self, reverse=False):
        """A tile's state of [B, tiles, rows, 128]."""
        last = self.tiles - 1
        return pl.BlockSpec(
            (None, None, self.block, _LANES),
            lambda b, c, t: (b, last - t if reverse else t, c, 0),
        )

    def narrow(self):
        """The state of [B, rows, 128] that all tiles of a sequence share."""
        return pl.BlockSpec((None, self.block, _LANES), lambda b, c, t: (b, c, 0))

    def scratch(self, wide):
        """`wide` tiles of VMEM and two states, in float32."""
        tile = (self.steps, self.block, _LANES)
        return [pltpu.VMEM(tile, jnp.float32)] * wide + [pltpu.VMEM(tile[1:], jnp.float32)] * 2

    def wide_shape(self, dtype):
        shape = (self.batch, self.padded, self.rows, _LANES)
        return jax.ShapeDtypeStruct(shape, dtype)

    def entering_shape(self):
        shape = (self.batch, self.tiles, self.rows, _LANES)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def state_shape(self):
        return jax.ShapeDtypeStruct((self.batch, self.rows, _LANES), jnp.float32)


_call = functools.partial(
    pl.pallas_call,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
)


def _launch_forward(tiles, inputs, states):
    wide, narrow = tiles.wide(), tiles.narrow()
    return _call(
        pallas_kernels.forward_kernel,
        grid=tiles.grid,
        in_specs=[wide] * 3 + [narrow] * 2,
        out_specs=[wide] * 2 + [tiles.entering()] * 2 + [narrow] * 2,
        out_shape=[tiles.wide_shape(x.dtype) for x in inputs[1:]]
        + [tiles.entering_shape()] * 2
        + [tiles.state_shape()] * 2,
        scratch_shapes=tiles.scratch(0),
        interpret=interpret(),
        name="decay_scan_forward",
    )(*inputs, *states)


def _launch_backward(tiles, inputs, entering, d_mem, d_last):
    wide, narrow = tiles.wide(reverse=True), tiles.narrow()
    return _call(
        pallas_kernels.backward_kernel,
        grid=tiles.grid,
        in_specs=[wide] * 3 + [tiles.entering(reverse=True)] * 2 + [wide] * 2 + [narrow] * 2,
        out_specs=[wide] * 3 + [narrow] * 2,
        out_shape=[tiles.wide_shape(x.dtype) for x in inputs] + [tiles.state_shape()] * 2,
        scratch_shapes=tiles.scratch(2),
        interpret=interpret(),
        name="decay_scan_backward",
    )(*inputs, *entering, *d_mem, *d_last)
