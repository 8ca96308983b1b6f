"""`strided_prefill` through the TPU kernels of `pallas_kernels`, and its gradient rule.

Kernels read [B, heads, T, D]. The far keys are sliced out beforehand, which makes their share dense
attention over a short list; their gradients are spread over the positions afterwards, added to
those of the near ones.

Why it should be fast, none of it timed: with dilation 64 at T = 4096 a query meets 64 far keys and,
for its own, a strip of 128, a tenth of what causal attention computes. A step of the grid costs
about 0.35 us beside its work, so it takes 1024 queries: in the compiler's schedule for v5p that is
2,150 cycles forward and 3,900 backward (1.2 and 2.2 us at 1.75 GHz; more than half of it the
strips), in which the next tiles, 1 MiB, arrive. Every byte is read once, and backward recomputes
scores once for all gradients; only a local window takes one more pass, over its keys.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.dense_prefill import pallas_tpu as dense
from ratjax_kernels.pallas_call import dtype_problem, pad_to
from ratjax_kernels.strided_prefill.pallas_cut import Cut


def limits_of_strided_prefill(q, k, v, dilation, local, initial):
    """See `ratjax_kernels.dispatch.Operation`."""
    if dilation == 1:
        return dense.limits_of_dense_prefill(q, k, v)
    cut = Cut.of(q, k, jnp.result_type(q, k, v), dilation, local, initial)
    return dtype_problem(q, k, v) or cut.problem()


def strided_prefill(q, k, v, dilation, local, initial):
    """See `ratjax_kernels.strided_prefill.api`."""
    if dilation == 1:
        return dense.dense_prefill(q, k, v)
    dtype = jnp.result_type(q, k, v)
    cut = Cut.of(q, k, dtype, dilation, local, initial)
    return _attend(*(x.astype(dtype) for x in (q, k, v)), cut).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q, k, v, cut):
    return _forward(q, k, v, cut)[0]


def _forward(q, k, v, cut):
    out, lse = merge_vmap(functools.partial(_run_forward, cut))(q, k, v)
    return out, (q, k, v, out, lse)


def _backward(cut, residuals, d_out):
    return merge_vmap(functools.partial(_run_backward, cut))(*residuals, d_out)


_attend.defvjp(_forward, _backward)


def _run_forward(cut, q, k, v):
    cut = dataclasses.replace(cut, batch=q.shape[0])
    q, k, v = map(_swap, (q, k, v))
    out, lse = cut.forward()(cut.tiled(q), *map(cut.window, (k, v)), *cut.far(k, v))
    return _swap(out[:, :, : cut.length]), lse


def _run_backward(cut, q, k, v, out, lse, d_out):
    cut = dataclasses.replace(cut, batch=q.shape[0])
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = pad_to(_swap(delta)[:, :, None], 3, cut.padded)
    q, k, v, d_out = map(_swap, (q, k, v, d_out))
    tiles = (cut.tiled(q), cut.tiled(d_out), lse, delta)
    dq, *of_keys = cut.queries()(*tiles, *map(cut.window, (k, v)), *cut.far(k, v))
    far, near = of_keys[: 2 * cut.has_far], of_keys[2 * cut.has_far :]
    if cut.rule.lead:
        reaching = (cut.behind(x, axis) for x, axis in zip(tiles, (2, 2, 3, 3), strict=True))
        near = cut.keys()(*reaching, cut.tiled(k), cut.tiled(v))
    near = [x[:, :, : cut.length] for x in near]
    if far:
        near = [x + cut.spread(y) for x, y in zip(near, far, strict=True)]
    return tuple(_swap(x).astype(cut.dtype) for x in (dq[:, :, : cut.length], *near))


def _swap(x):
    """[B, T, heads, ...] <-> [B, heads, T, ...]."""
    return jnp.swapaxes(x, 1, 2)
