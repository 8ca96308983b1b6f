"""Cross entropy over chunks of time, so that [B, T, V] logits never exist whole."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ratjax.data import Batch
from ratjax.model import Decoder
from ratjax.sharding import active_mesh, manual
from ratjax.sparsity.pattern import Pattern
from ratjax_kernels.manual_axes import vary_together

Partition = Float32[Array, "B t"]


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
      chunk: time positions whose logits exist at once, on each device.
      most_targets: no sequence has more targets than this (None: unknown). Where that is
        little, as in supervised fine-tuning, logits are computed at the targets alone.

    Returns:
      (what is minimised, the cross entropy alone); they are equal where `z_loss` is 0.
    """
    hidden = model.hidden(batch.tokens, pattern, batch.document_starts)
    arrays = (hidden, batch.targets, batch.mask)
    if active_mesh() is None:
        return tuple(_sums(model.logits, _scores, arrays, z_loss, chunk, most_targets))

    def local(head, *arrays):
        """This device's sequences, positions and part of the vocabulary; summed over all."""
        dtype = hidden.dtype
        # Cast as it travels; back in float32, its gradient is summed over the chunks in that.
        head = jax.lax.all_gather(head.astype(dtype), "fsdp", tiled=True).astype(jnp.float32)

        def logits(hidden):
            return jnp.matmul(hidden, head.astype(dtype), preferred_element_type=jnp.float32)

        sums = _sums(logits, _scores_of_shards, arrays, z_loss, chunk, most_targets)
        return jax.lax.psum(sums, ("data", "fsdp", "context"))

    places = (("embed", "vocab"), ("batch", "time", "channels"), ("batch", "time"))
    total = manual(local, (*places, places[-1]), (None,))(model.output_head(), *arrays)
    return tuple(total)


def _sums(
    logits_of: Callable[[Float[Array, "B t M"]], Float32[Array, "B t V"]],
    scores: Callable[[Float32[Array, "B t V"], Int32[Array, "B t"]], tuple[Partition, Partition]],
    arrays: tuple[Float[Array, "B T M"], Int32[Array, "B T"], Bool[Array, "B T"]],
    z_loss: float,
    chunk: int,
    most_targets: int | None,
) -> Float32[Array, " 2"]:
    """`loss_sums` of hidden states, targets and mask, given how logits are made and scored."""

    def sums(
        hidden: Float[Array, "B t M"], targets: Int32[Array, "B t"], mask: Bool[Array, "B t"]
    ) -> Float32[Array, " 2"]:
        log_partition, picked = scores(logits_of(hidden), targets)
        entropy = jnp.where(mask, log_partition - picked, 0.0).sum()
        if not z_loss:
            return jnp.stack([entropy, entropy])
        penalty = jnp.where(mask, log_partition**2, 0.0).sum()
        return jnp.stack([entropy + z_loss * penalty, entropy])

    length = logit_positions(arrays[0].shape[1], most_targets)
    if length < arrays[0].shape[1]:
        arrays = gather_targets(*arrays, length)
    if length <= chunk:
        return sums(*arrays)
    # The backward pass recomputes a chunk's logits instead of keeping all of them.
    sums = jax.checkpoint(sums)
    whole = length - length % chunk
    chunks = jax.tree.map(lambda a: split_time(a[:, :whole], chunk), arrays)
    start = vary_together(jnp.zeros(2), arrays)
    total, _ = jax.lax.scan(lambda t, xs: (t + sums(*xs), None), start, chunks)
    if whole < length:
        total += sums(*(a[:, whole:] for a in arrays))
    return total


def _scores(
    logits: Float32[Array, "B t V"], targets: Int32[Array, "B t"]
) -> tuple[Partition, Partition]:
    """The log-partition and the target's logit, of whole logits."""
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    return log_partition, jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _scores_of_shards(
    logits: Float32[Array, "B t v"], targets: Int32[Array, "B t"]
) -> tuple[Partition, Partition]:
    """The same where each device of the `tensor` axis holds the logits of a part of the words."""
    most = jax.lax.pmax(jax.lax.stop_gradient(logits).max(-1), "tensor")
    total = jax.lax.psum(jnp.exp(logits - most[..., None]).sum(-1), "tensor")
    row = targets - jax.lax.axis_index("tensor") * logits.shape[-1]
    here = (row >= 0) & (row < logits.shape[-1])
    picked = jnp.take_along_axis(logits, jnp.where(here, row, 0)[..., None], axis=-1)[..., 0]
    return jnp.log(total) + most, jax.lax.psum(jnp.where(here, picked, 0), "tensor")


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
