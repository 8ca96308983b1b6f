"""Dilated attention, a tile of queries a step: the near keys in a band, the far ones in a list.

Near are the keys up to `local` before a query's own, that included: a tile's are one window of the
keys, of which each strip of queries meets its own part. Far are the initial and strided keys that
are not near. They are few, so that a head's whole list waits in VMEM while all its queries pass,
and a loop runs over as much of the list as can stand before the tile: nothing else is computed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ratjax_kernels.pallas_softmax import (
    Running,
    Slopes,
    absorb,
    clear,
    finish,
    scores_of,
    side_by_side,
    slopes,
    start,
)

STRETCH = 512  # of the band, treated at once
_NOWHERE = 2**30


class Rule(NamedTuple):
    """Who sees what, and how the lists are cut.

    Attributes:
      dilation: distance of strided keys; -1: there are none.
      local: near keys before the own one.
      initial: keys at the start that all see.
      strided: how many strided keys there are behind the initial ones.
      strip: queries that meet the same part of the band.
      lead: keys before a tile's own that its window holds: `local` in whole strips.
      at_once: far keys treated at once.
    """

    dilation: int
    local: int
    initial: int
    strided: int
    strip: int
    lead: int
    at_once: int

    def far_at(self, n):
        """Where far key n stands: the initial ones first, then the strided ones behind them."""
        strided = _NOWHERE
        if self.strided:
            skipped = self.initial // self.dilation
            strided = (n - self.initial + 1 + skipped) * self.dilation - 1
        return jnp.where(n < self.initial, n, strided)

    def far_before(self, position):
        """How many far keys stand before `position`, which may be negative."""
        position = jnp.maximum(position, 0)
        count = jnp.minimum(position, self.initial)
        if self.strided:
            skipped = self.initial // self.dilation
            count += jnp.clip(lax.div(position, self.dilation) - skipped, 0, self.strided)
        return count


def _hide(scores, visible):
    return jnp.where(visible, scores, -jnp.inf)


def _rows(first, count: int, axis: int):
    """Positions first .. first + count - 1 along an axis of a [count, 1] or [1, count] array."""
    shape = (count, 1) if axis == 0 else (1, count)
    return first + lax.broadcasted_iota(jnp.int32, shape, axis)


def _over_band(rule: Rule, strip: int, body, carry):
    """`body(first row, rows, carry)` over the stretches of the window that a strip meets."""
    begin, rows = strip * rule.strip, rule.strip + rule.lead
    if rows <= 2 * STRETCH:
        for at in range(0, rows, STRETCH):
            carry = body(begin + at, min(STRETCH, rows - at), carry)
        return carry

    def step(n, carry):
        return body(pl.multiple_of(begin + n * STRETCH, STRETCH), STRETCH, carry)

    return lax.fori_loop(0, rows // STRETCH, step, carry)


def _near(scores, i, j, local: int):
    return _hide(scores, (i - j >= 0) & (i - j <= local) & (j >= 0))


def _far_loop(rule: Rule, first, queries: int, body, carry):
    """`body(start of the far keys, mask or None, carry)` over what a tile of queries may see."""
    size = rule.at_once
    full = lax.div(rule.far_before(first - rule.local), size)
    end = lax.div(rule.far_before(first + queries - rule.local) + size - 1, size)

    def whole(n, carry):
        return body(n * size, None, carry)

    def partial(n, carry):
        at = rule.far_at(_rows(n * size, size, 0))
        return body(n * size, _rows(first - rule.local, queries, 1) > at, carry)

    return lax.fori_loop(full, end, partial, lax.fori_loop(0, full, whole, carry))


def forward_kernel(rule: Rule, q_ref, k_ref, v_ref, *refs):
    """q [TILE, D]; the window's k, v [lead + TILE, D]; far k, v [N, D] -> out, lse [1, TILE]."""
    *far, out_ref, lse_ref, acc_ref = refs
    queries, channels = q_ref.shape
    first = pl.program_id(2) * queries
    strips = []
    for strip in range(queries // rule.strip):
        begin = strip * rule.strip
        q = q_ref[begin : begin + rule.strip, :]

        def near(at, count, state, q=q, begin=begin):
            i = _rows(first + begin, rule.strip, 1)
            j = _rows(first - rule.lead + at, count, 0)
            scores = _near(scores_of(k_ref[pl.ds(at, count), :], q), i, j, rule.local)
            return absorb(state, scores, v_ref[pl.ds(at, count), :])

        strips.append(_over_band(rule, strip, near, start(channels, rule.strip)))
    state = side_by_side(strips)
    if far:
        far_k_ref, far_v_ref = far
        acc_ref[...] = state.acc
        q = q_ref[...]

        def step(at, visible, carry):
            rows = pl.ds(pl.multiple_of(at, rule.at_once), rule.at_once)
            scores = scores_of(far_k_ref[rows, :], q)
            scores = scores if visible is None else _hide(scores, visible)
            state = absorb(Running(*carry, acc_ref[...]), scores, far_v_ref[rows, :])
            acc_ref[...] = state.acc
            return state.top, state.total

        carry = _far_loop(rule, first, queries, step, (state.top, state.total))
        state = Running(*carry, acc_ref[...])
    out, lse = finish(state)
    out_ref[...] = out.astype(out_ref.dtype)
    lse_ref[...] = lse


def queries_kernel(rule: Rule, q_ref, d_out_ref, lse_ref, delta_ref, *refs, has_far: bool):
    """Backward, a tile of queries a step: dq, and all gradients of the far keys.

    Without a local window a tile's near keys are those at its own positions, and theirs too. The
    far keys' gradients wait in VMEM until all queries of all heads that share them have passed.
    """
    k_ref, v_ref, *refs, acc_ref = refs
    far, (dq_ref, *refs) = refs[: 2 * has_far], refs[2 * has_far :]
    far_slopes, near_slopes = refs[: 2 * has_far], refs[2 * has_far :]
    queries, channels = q_ref.shape
    tile, member = pl.program_id(2), pl.program_id(3)
    first = tile * queries
    for strip in range(queries // rule.strip):
        begin = strip * rule.strip
        own = slice(begin, begin + rule.strip)
        q, d_out, lse, delta = q_ref[own, :], d_out_ref[own, :], lse_ref[:, own], delta_ref[:, own]

        def near(at, count, dq, own=own, q=q, d_out=d_out, lse=lse, delta=delta):
            k, v = k_ref[pl.ds(at, count), :], v_ref[pl.ds(at, count), :]
            i = _rows(first + own.start, rule.strip, 1)
            j = _rows(first - rule.lead + at, count, 0)
            scores = _near(scores_of(k, q), i, j, rule.local)
            part = slopes(scores, q, k, v, d_out, lse, delta)
            if near_slopes:  # the window is the tile itself
                _add(near_slopes, own, part, member == 0)
            return dq + part.dq

        zeros = jnp.zeros((channels, rule.strip), jnp.float32)
        acc_ref[:, own] = _over_band(rule, strip, near, zeros)
    if has_far:
        far_k_ref, far_v_ref = far
        far_dk_ref, far_dv_ref = far_slopes

        @pl.when((tile == 0) & (member == 0))
        def _():
            clear(rule.at_once, far_dk_ref, far_dv_ref)

        q, d_out, lse, delta = q_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]

        def step(at, visible, carry):
            rows = pl.ds(pl.multiple_of(at, rule.at_once), rule.at_once)
            k, v = far_k_ref[rows, :], far_v_ref[rows, :]
            scores = scores_of(k, q)
            scores = scores if visible is None else _hide(scores, visible)
            part = slopes(scores, q, k, v, d_out, lse, delta)
            acc_ref[...] += part.dq
            far_dk_ref[rows, :] += part.dk
            far_dv_ref[rows, :] += part.dv
            return carry

        _far_loop(rule, first, queries, step, 0)
    dq_ref[...] = acc_ref[...].T.astype(dq_ref.dtype)


def keys_kernel(rule: Rule, q_ref, d_out_ref, lse_ref, delta_ref, k_ref, v_ref, *refs):
    """Backward of the band, a tile of keys a step: queries [TILE + lead, D], k and v [TILE, D]."""
    keys, channels = k_ref.shape
    first, member = pl.program_id(2) * keys, pl.program_id(3)
    for strip in range(keys // rule.strip):
        begin = strip * rule.strip
        own = slice(begin, begin + rule.strip)
        k, v = k_ref[own, :], v_ref[own, :]

        def near(at, count, sums, k=k, v=v, begin=begin):
            there = pl.ds(at, count)
            i, j = _rows(first + at, count, 1), _rows(first + begin, rule.strip, 0)
            q = q_ref[there, :]
            scores = _near(scores_of(k, q), i, j, rule.local)
            tile = (d_out_ref[there, :], lse_ref[:, there], delta_ref[:, there])
            part = slopes(scores, q, k, v, *tile)
            return Slopes(sums.dq, sums.dk + part.dk, sums.dv + part.dv)

        zeros = jnp.zeros((rule.strip, channels), jnp.float32)
        sums = _over_band(rule, strip, near, Slopes(None, zeros, zeros))
        _add(refs, own, sums, member == 0)


def _add(refs, rows: slice, part: Slopes, is_first):
    """Adds to rows of dk and dv, which the heads of a group share; the first of them sets them."""
    for ref, x in zip(refs, (part.dk, part.dv), strict=True):

        @pl.when(is_first)
        def _(ref=ref, x=x):
            ref[rows, :] = x.astype(ref.dtype)

        @pl.when(jnp.logical_not(is_first))
        def _(ref=ref, x=x):
            ref[rows, :] += x.astype(ref.dtype)
