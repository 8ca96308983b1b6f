"""A batch's loss: the decoder, then cross entropy over its logits, which never exist whole."""

from jaxtyping import Array, Float32

from ratjax.data import Batch
from ratjax.model import Decoder
from ratjax.sparsity.pattern import Pattern
from ratjax.train.cross_entropy import How, entropy_sums


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
      (what is minimised, the cross entropy alone); they are equal where `z_loss` is 0. The second
      is for reading: it has no gradient.
    """
    hidden = model.hidden(batch.tokens, pattern, batch.document_starts)
    how = How(z_loss, chunk, logit_positions(batch.tokens.shape[1], most_targets))
    minimised, entropy = entropy_sums(how, model.output_head(), hidden, batch.targets, batch.mask)
    return minimised, entropy


def logit_positions(length: int, most_targets: int | None) -> int:
    """Positions of each sequence whose logits are computed: all, or as many as have targets."""
    few = most_targets is not None and 2 * most_targets <= length
    return most_targets if few else length
