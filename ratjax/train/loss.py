"""Cross entropy over chunks of time, so that [B, T, V] logits never exist whole."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ratjax.data import Batch
from ratjax.model import Decoder
from ratjax.sparsity.pattern import Pattern


def loss_sums(
    model: Decoder,
    batch: Batch,
    pattern: Pattern,
    z_loss: float,
    chunk: int,
    most_targets: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Sums over a batch's targets, not divided by their number.

    Sums, because a mean of the means of microbatches with different numbers of targets is not
    the mean.

    Args:
      model: the decoder.
      batch: inputs, targets and their mask, [B, T].
      pattern: what attention sees.
      z_loss: weight of the squared log-partition.
      chunk: time positions whose logits exist at once.
      most_targets: no sequence has more targets than this (None: unknown). Where that is
        little, as in supervised fine-tuning, logits are computed at the targets alone.

    Returns:
      (what is minimised, the cross entropy alone); they are equal where `z_loss` is 0.
    """
    hidden = model.hidden(batch.tokens, pattern, batch.document_starts)

    def sums(
        hidden: Float[Array, "B t M"], targets: Int32[Array, "B t"], mask: Bool[Array, "B t"]
    ) -> Float32[Array, " 2"]:
        logits = model.logits(hidden)
        log_partition = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        entropy = jnp.where(mask, log_partition - picked, 0.0).sum()
        if not z_loss:
            return jnp.stack([entropy, entropy])
        penalty = jnp.where(mask, log_partition**2, 0.0).sum()
        return jnp.stack([entropy + z_loss * penalty, entropy])

    arrays = (hidden, batch.targets, batch.mask)
    length = logit_positions(hidden.shape[1], most_targets)
    if length < hidden.shape[1]:
        arrays = gather_targets(*arrays, length)
    if length <= chunk:
        return tuple(sums(*arrays))
    # The backward pass recomputes a chunk's logits instead of keeping all of them.
    sums = jax.checkpoint(sums)
    whole = length - length % chunk
    chunks = jax.tree.map(lambda a: split_time(a[:, :whole], chunk), arrays)
    total, _ = jax.lax.scan(lambda t, xs: (t + sums(*xs), None), jnp.zeros(2), chunks)
    if whole < length:
        total += sums(*(a[:, whole:] for a in arrays))
    return tuple(total)


def logit_positions(length: int, most_targets: int | None) -> int:
    """Positions of each sequence whose logits are computed: all, or as many as have targets."""
    few = most_targets is not None and 2 * most_targets <= length
    return most_targets if few else length


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
