"""`strided_prefill` through Triton: what is launched, in which tiles, and the gradient rule."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.strided_prefill.triton_forward import forward_kernel
from ratjax_kernels.strided_prefill.triton_keys import far_keys_kernel, keys_kernel
from ratjax_kernels.strided_prefill.triton_queries import queries_kernel
from ratjax_kernels.triton_call import (
    device_problem,
    launch,
    power_of_two,
    precision,
    shared_memory_problem,
)

_WIDEST = 256  # channels; a tile of keys and one of queries must fit into shared memory


class Tiling(NamedTuple):
    """Rows that a program owns, columns it walks over at a time, warps, pipeline depth."""

    rows: int
    cols: int
    warps: int
    stages: int


# The fastest of those measured on an H100 at head dim 128; wider heads take smaller tiles.
_NARROW = {
    "forward": Tiling(128, 32, 8, 3),
    "queries": Tiling(64, 32, 4, 3),
    "far_keys": Tiling(128, 64, 8, 3),
    "keys": Tiling(64, 64, 4, 2),
    "own_keys": Tiling(16, 16, 4, 1),
}
_WIDE = {
    "forward": Tiling(64, 32, 4, 2),
    "queries": Tiling(64, 32, 4, 2),
    "far_keys": Tiling(64, 32, 8, 2),
    "keys": Tiling(64, 32, 8, 2),
    "own_keys": Tiling(16, 16, 4, 1),
}
# float32 is multiplied without tensor cores: small tiles, or registers run out.
_FLOAT32 = {
    "forward": Tiling(32, 32, 4, 2),
    "queries": Tiling(32, 32, 4, 2),
    "far_keys": Tiling(32, 16, 4, 2),
    "keys": Tiling(32, 16, 4, 2),
    "own_keys": Tiling(16, 16, 4, 1),
}
_WIDE_FLOAT32 = {
    "forward": Tiling(32, 16, 8, 1),
    "queries": Tiling(32, 16, 8, 1),
    "far_keys": Tiling(32, 16, 8, 1),
    "keys": Tiling(16, 16, 4, 1),
    "own_keys": Tiling(16, 16, 4, 1),
}

# Programs that keep every multiprocessor busy to the end, and queries that make a stretch
# worth its partial sums.
_ENOUGH_PROGRAMS = 1024
_LEAST_STRETCH = 2048


class _Pattern(NamedTuple):
    """The rule with what is redundant taken away."""

    dilation: int
    local: int
    initial: int

    @property
    def own(self) -> bool:
        """Near is the query's own key alone. (Dense attention has no lists to speak of.)"""
        return self.local == 0 and self.dilation != 1

    @property
    def extra(self) -> int:
        """Initial keys that are not strided."""
        return self.initial - (self.initial // self.dilation if self.dilation > 0 else 0)

    def far(self, length: int) -> int:
        """Keys in the list of far ones."""
        return self.extra + (length // self.dilation if self.dilation > 0 else 0)


def limits_of_strided_prefill(q, k, v, dilation, local, initial):
    """See `ratjax_kernels.dispatch.Operation`."""
    if q.shape[-1] > _WIDEST:
        return f"serves head dims up to {_WIDEST}, not {q.shape[-1]}"
    return device_problem(q, k, v) or shared_memory_problem()


def strided_prefill(q, k, v, dilation, local, initial):
    """See `ratjax_kernels.strided_prefill.api`."""
    length = q.shape[1]
    local, initial = min(local, length), min(initial, length)
    if dilation == 1:
        local = initial = 0
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in (q, k, v)))
    same = (x.astype(dtype) for x in (q, k, v))
    return _attend(*same, _Pattern(dilation, local, initial)).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q, k, v, pattern):
    return _launch_forward(pattern)(q, k, v)[0]


def _forward(q, k, v, pattern):
    out, lse = _launch_forward(pattern)(q, k, v)
    return out, (q, k, v, out, lse)


def _backward(pattern, residuals, d_out):
    return _launch_backward(pattern)(*residuals, d_out)


_attend.defvjp(_forward, _backward)


def tiling_of(kernel: str, dtype, padded: int) -> Tiling:
    """How `kernel` is cut up for `padded` channels of `dtype`."""
    narrow, wide = (_FLOAT32, _WIDE_FLOAT32) if dtype == jnp.float32 else (_NARROW, _WIDE)
    return (narrow if padded <= 128 else wide)[kernel]


def _constants(q, k, pattern):
    batch, length, heads, channels = q.shape
    return {
        "LENGTH": length,
        "HEADS": heads,
        "KV_HEADS": k.shape[2],
        "CHANNELS": channels,
        "PADDED": power_of_two(channels, 16),
        "LANES": batch * heads,
        "DILATION": pattern.dilation,
        "LOCAL": pattern.local,
        "INITIAL": pattern.initial,
        "EXTRA": pattern.extra,
        "OWN": pattern.own,
        "LOG2_SCALE": channels**-0.5 * math.log2(math.e),
        "PRECISION": precision(q.dtype),
    }


def _launch(kernel, inputs, outputs, rows, tiling, constants):
    """One program for each tile of `rows` and each lane."""
    tiles = -(-rows // tiling.rows)
    return launch(
        kernel,
        inputs,
        outputs,
        grid=(tiles * constants["LANES"] * constants.get("SPLITS", 1),),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        ROWS=tiling.rows,
        COLS=tiling.cols,
        **constants,
    )


@functools.cache
def _launch_forward(pattern):
    @merge_vmap
    def run(q, k, v):
        constants = _constants(q, k, pattern)
        batch, length, heads, _ = q.shape
        lse = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        tiling = tiling_of("forward", q.dtype, constants["PADDED"])
        return _launch(forward_kernel, (q, k, v), (_like(q), lse), length, tiling, constants)

    return run


@functools.cache
def _launch_backward(pattern):
    @merge_vmap
    def run(q, k, v, out, lse, d_out):
        delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        inputs = (q, k, v, d_out, lse, jnp.swapaxes(delta, 1, 2))
        constants = _constants(q, k, pattern)
        dq = _queries(inputs, constants)
        dk, dv = _keys(inputs, constants, pattern)
        return dq, dk, dv

    return run


def _queries(inputs, constants):
    q = inputs[0]
    tiling = tiling_of("queries", q.dtype, constants["PADDED"])
    constants = constants | {"SCALE": q.shape[-1] ** -0.5}
    return _launch(queries_kernel, inputs, (_like(q),), q.shape[1], tiling, constants)[0]


def _keys(inputs, constants, pattern):
    q, k = inputs[:2]
    batch, length, heads, channels = q.shape
    near = tiling_of("own_keys" if pattern.own else "keys", q.dtype, constants["PADDED"])
    far = pattern.far(length)
    if far:
        tiling = tiling_of("far_keys", q.dtype, constants["PADDED"])
        programs = batch * heads * -(-far // tiling.rows)
        splits = max(1, min(-(-_ENOUGH_PROGRAMS // programs), length // _LEAST_STRETCH))
        stretch = -(-length // splits // tiling.cols) * tiling.cols
        partial = jax.ShapeDtypeStruct((batch, splits, heads, far, channels), jnp.float32)
        settings = constants | {
            "FAR": far,
            "NEAR_ROWS": near.rows,
            "SPLITS": splits,
            "STRETCH": stretch,
        }
        del settings["INITIAL"]
        sums = _launch(far_keys_kernel, inputs, (partial, partial), far, tiling, settings)
    else:
        splits = 1
        sums = (jnp.zeros((batch,), jnp.float32),) * 2  # never read
    settings = constants | {
        "FAR": far,
        "SCALE": channels**-0.5,
        "LANES": batch * k.shape[2],
    }
    tiles = -(-length // near.rows)
    return launch(
        keys_kernel,
        (*inputs, *sums),
        (_like(k), _like(k)),
        grid=(tiles * settings["LANES"],),
        num_warps=near.warps,
        num_stages=near.stages,
        ROWS=near.rows,
        COLS=near.cols,
        SPLITS=splits,
        **settings,
    )


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
