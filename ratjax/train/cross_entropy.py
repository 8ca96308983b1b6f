"""Cross entropy over chunks of time, with the gradient formed in the forward pass.

A sum's gradient is known but for the factor that comes back, so each chunk's is formed while its
logits are there: nothing is computed twice, and [B, T, V] never exists. What is kept for the
backward pass is the gradient itself, of the head (float32, summed over chunks) and of the hidden
states. On a mesh the head is gathered once, and its gradient is scattered before the layers' is
worked out.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ratjax.sharding import active_mesh, manual

Scores = Float32[Array, "B t"]

_HEAD, _HIDDEN, _TIME = ("embed", "vocab"), ("batch", "time", "channels"), ("batch", "time")
_SEQUENCES = ("data", "fsdp", "context")  # axes of the mesh that targets are cut along


class How(NamedTuple):
    """How the sums are formed.

    Attributes:
      z_loss: weight of the squared log-partition.
      chunk: time positions whose logits exist at once, on each device.
      positions: of each sequence, whose logits are computed: at least as many as have targets.
    """

    z_loss: float
    chunk: int
    positions: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def entropy_sums(
    how: How,
    head: Float[Array, "M V"],
    hidden: Float[Array, "B T M"],
    targets: Int32[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float32[Array, " 2"]:
    """Sums over the targets that `mask` marks, in nats.

    Args:
      how: chunks and z-loss.
      head: what turns channels into logits, float32; it is multiplied in the dtype of `hidden`.
      hidden: the decoder's output.
      targets: the word that each position is to predict.
      mask: where there is one.

    Returns:
      [cross entropy + z-loss, cross entropy]. The second has no gradient.
    """
    return _on_devices(_sums, how, (None,))(head, hidden, targets, mask)


def _forward(how, head, hidden, targets, mask):
    outputs = [(None,), _HEAD, _HIDDEN]
    sums, *gradients = _on_devices(_gradients, how, outputs)(head, hidden, targets, mask)
    return sums, gradients


def _backward(how, gradients, factors):
    d_head, d_hidden = (gradient * factors[0].astype(gradient.dtype) for gradient in gradients)
    return d_head, d_hidden, None, None


entropy_sums.defvjp(_forward, _backward)


def _on_devices(local: Callable, how: How, out_axes) -> Callable:
    """`local` on each device's sequences, positions and part of the vocabulary."""
    if active_mesh() is None:
        return partial(local, how, False)
    # It says itself what is summed over which axis of the mesh.
    places = (_HEAD, _HIDDEN, _TIME, _TIME)
    return manual(partial(local, how, True), places, out_axes, check_vma=False)


def _sums(how, sharded, head, hidden, targets, mask):
    head = _whole(head, hidden.dtype, sharded)
    if how.positions < mask.shape[1]:
        hidden, targets, mask = gather_targets(hidden, targets, mask, how.positions)

    def add(total, hidden, targets, mask):
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        scores = _scores(logits, _rows(targets, head, sharded), sharded)
        return total + _weigh(how, *scores, mask), None

    total, _ = _over_chunks(add, jnp.zeros(2), how.chunk, hidden, targets, mask)
    return jax.lax.psum(total, _SEQUENCES) if sharded else total


def _gradients(how, sharded, head, hidden, targets, mask):
    """(sums, gradient of the first for the head, for the hidden states)."""
    dtype = hidden.dtype
    whole = _whole(head, dtype, sharded)
    spread = None
    if how.positions < mask.shape[1]:
        pick = partial(gather_targets, targets=targets, mask=mask, most=how.positions)
        hidden, spread, (targets, mask) = jax.vjp(
            lambda h: (pick(h)[0], pick(h)[1:]), hidden, has_aux=True
        )

    def add(carry, hidden, targets, mask):
        total, d_head = carry
        logits = jnp.matmul(hidden, whole, preferred_element_type=jnp.float32)
        rows = _rows(targets, whole, sharded)
        log_partition, picked = _scores(logits, rows, sharded)
        total += _weigh(how, log_partition, picked, mask)
        weight = jnp.where(mask, 1 + 2 * how.z_loss * log_partition, 0.0)
        d_logits = jnp.exp(logits - log_partition[..., None]) * weight[..., None]
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == rows[..., None]
        d_logits = (d_logits - (hit & mask[..., None])).astype(dtype)
        d_head += jnp.einsum("btm,btv->mv", hidden, d_logits, preferred_element_type=jnp.float32)
        return (total, d_head), jnp.einsum("btv,mv->btm", d_logits, whole)

    start = jnp.zeros(2), jnp.zeros(whole.shape, jnp.float32)
    (total, d_head), d_hidden = _over_chunks(add, start, how.chunk, hidden, targets, mask)
    if spread is not None:
        (d_hidden,) = spread(d_hidden)
    if sharded:
        total = jax.lax.psum(total, _SEQUENCES)
        d_hidden = jax.lax.psum(d_hidden, "tensor")
        # Travels as it came, in the compute dtype.
        d_head = jax.lax.psum_scatter(d_head.astype(dtype), "fsdp", tiled=True)
        d_head = jax.lax.psum(d_head.astype(jnp.float32), ("data", "context"))
    return total, d_head.astype(head.dtype), d_hidden


def _whole(head, dtype, sharded):
    """All channels of this device's part of the vocabulary, cast before they travel."""
    head = head.astype(dtype)
    return jax.lax.all_gather(head, "fsdp", tiled=True) if sharded else head


def _rows(targets, head, sharded):
    """Targets as rows of this device's part of the vocabulary; beyond it where not here."""
    return targets - jax.lax.axis_index("tensor") * head.shape[1] if sharded else targets


def _scores(
    logits: Float32[Array, "B t V"], rows: Int32[Array, "B t"], sharded: bool
) -> tuple[Scores, Scores]:
    """The log-partition and the target's logit."""
    if not sharded:
        picked = jnp.take_along_axis(logits, rows[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1), picked
    most = jax.lax.pmax(logits.max(-1), "tensor")
    total = jax.lax.psum(jnp.exp(logits - most[..., None]).sum(-1), "tensor")
    here = (rows >= 0) & (rows < logits.shape[-1])
    picked = jnp.take_along_axis(logits, jnp.where(here, rows, 0)[..., None], axis=-1)[..., 0]
    return jnp.log(total) + most, jax.lax.psum(jnp.where(here, picked, 0), "tensor")


def _weigh(how: How, log_partition: Scores, picked: Scores, mask: Bool[Array, "B t"]):
    entropy = jnp.where(mask, log_partition - picked, 0.0).sum()
    penalty = jnp.where(mask, log_partition**2, 0.0).sum() if how.z_loss else 0.0
    return jnp.stack([entropy + how.z_loss * penalty, entropy])


def _over_chunks(add: Callable, start, chunk: int, *arrays: Array):
    """`carry, out = add(carry, *chunks)` along time; outputs are put end to end again."""
    length = arrays[0].shape[1]
    if length <= chunk:
        return add(start, *arrays)
    whole = length - length % chunk
    chunks = [split_time(a[:, :whole], chunk) for a in arrays]
    carry, outs = jax.lax.scan(lambda carry, xs: add(carry, *xs), start, chunks)
    outs = jax.tree.map(join_time, outs)
    if whole < length:
        carry, last = add(carry, *(a[:, whole:] for a in arrays))
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), outs, last)
    return carry, outs


def gather_targets(
    hidden: Float[Array, "B T M"],
    targets: Int32[Array, "B T"],
    mask: Bool[Array, "B T"],
    most: int,
) -> tuple[Float[Array, "B {most} M"], Int32[Array, "B {most}"], Bool[Array, "B {most}"]]:
    """The positions with targets, in order, filled up with positions that have none."""
    places = jnp.argsort(~mask, axis=1, stable=True)[:, :most]
    return (
        jnp.take_along_axis(hidden, places[..., None], axis=1),
        jnp.take_along_axis(targets, places, axis=1),
        jnp.take_along_axis(mask, places, axis=1),
    )


def split_time(array: Array, chunk: int) -> Array:
    """[B, n * chunk, ...] -> [n, B, chunk, ...]."""
    batch, length, *rest = array.shape
    return jnp.moveaxis(array.reshape(batch, length // chunk, chunk, *rest), 1, 0)


def join_time(array: Array) -> Array:
    """[n, B, chunk, ...] -> [B, n * chunk, ...]."""
    number, batch, chunk, *rest = array.shape
    return jnp.moveaxis(array, 0, 1).reshape(batch, number * chunk, *rest)
