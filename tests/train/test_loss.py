import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.data import Batch
from ratjax.model import Decoder
from ratjax.model.parameters import to_model
from ratjax.sparsity.dense import Dense
from ratjax.train.cross_entropy import How, entropy_sums
from ratjax.train.loss import logit_positions, loss_sums
from tests.train.conftest import VOCAB, random_parameters


@pytest.fixture(scope="module")
def model(attention_config):
    return to_model(attention_config, random_parameters(attention_config))


def direct(model, batch, z_loss=0.0):
    logits = np.asarray(jax.jit(lambda m, t: m(t))(model, batch.tokens), np.float64)
    log_partition = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, np.asarray(batch.targets)[..., None], -1)[..., 0]
    entropy = ((log_partition - picked) * batch.mask).sum()
    return entropy + z_loss * (log_partition**2 * batch.mask).sum(), entropy


@pytest.mark.parametrize(
    ("chunk", "z_loss"),
    [(1, 0.0), (3, 0.1), (8, 0.1), (100, 0.0)],  # 3 leaves a remainder of 2
)
def test_chunked_sums_equal_the_direct_ones(model, batch, chunk, z_loss):
    found = jax.jit(lambda m, b: loss_sums(m, b, Dense(), z_loss, chunk))(model, batch)
    # float32 sums of 12 terms of size about 3
    np.testing.assert_allclose(found, direct(model, batch, z_loss), rtol=1e-5)


def test_gradients_do_not_depend_on_the_chunk(model, batch):
    def gradient(chunk):
        return jax.jit(jax.grad(lambda m: loss_sums(m, batch, Dense(), 0.01, chunk)[0]))(model)

    whole, chunked = gradient(8), gradient(3)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        # sums in another order
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def plain(head, hidden, targets, mask, z_loss):
    """The sum as written, for JAX to differentiate."""
    logits = hidden @ head
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.where(mask, log_partition - picked + z_loss * log_partition**2, 0.0).sum()


@pytest.mark.parametrize("positions", [3, 8])
@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_the_gradient_is_that_of_the_sum_as_written(chunk, positions):
    """At any factor that comes back, and where few positions have targets."""
    rng = np.random.default_rng(0)
    head, hidden = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, VOCAB), (4, 8, 6)))
    targets = jnp.asarray(rng.integers(VOCAB, size=(4, 8)), jnp.int32)
    mask = jnp.asarray(rng.permuted(np.arange(8) < np.ones((4, 1)) * 3, axis=1))
    how = How(0.1, chunk, positions)

    def ours(head, hidden):
        return jnp.sin(0.01 * entropy_sums(how, head, hidden, targets, mask)[0])

    def theirs(head, hidden):
        return jnp.sin(0.01 * plain(head, hidden, targets, mask, 0.1))

    found = jax.jit(jax.grad(ours, (0, 1)))(head, hidden)
    for one, other in zip(found, jax.grad(theirs, (0, 1))(head, hidden), strict=True):
        # sums of 12 terms in another order
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_only_read_has_no_gradient(model, batch):
    def entropy(model):
        return loss_sums(model, batch, Dense(), 0.0, 3)[1]

    assert all(not np.asarray(g).any() for g in jax.tree.leaves(jax.jit(jax.grad(entropy))(model)))


@pytest.mark.parametrize("chunk", [2, 8])
def test_logits_at_the_targets_alone(model, batch, chunk):
    """At most 3 of 8 positions of a row have targets: the others' logits are not needed."""
    scattered = jnp.asarray([[0, 0, 1, 0, 0, 1, 0, 1], [0] * 8, [1] + [0] * 7, [0] * 7 + [1]], bool)
    batch = batch._replace(mask=scattered)

    def loss(most_targets):
        return lambda m, b: loss_sums(m, b, Dense(), 0.1, chunk, most_targets)

    few = jax.jit(loss(3))
    np.testing.assert_allclose(few(model, batch), direct(model, batch, 0.1), rtol=1e-5)
    sizes = few.lower(model, batch).as_text()
    assert f"tensor<4x{min(chunk, 3)}x{VOCAB}x" in sizes and f"tensor<4x8x{VOCAB}x" not in sizes
    assert [logit_positions(8, most) for most in (None, 8, 5, 4, 1)] == [8, 8, 8, 4, 1]


def test_masked_targets_have_no_influence(model, batch):
    loss = jax.jit(lambda m, b: loss_sums(m, b, Dense(), 0.0, 8)[0])
    changed = batch._replace(targets=jnp.where(batch.mask, batch.targets, 0))
    assert float(loss(model, batch)) == float(loss(model, changed))


def test_logits_of_the_whole_batch_never_exist(attention_config):
    """[B, T, V] is the largest array a naive loss makes; no array of the program has its size."""
    batch, length = 2, 64
    model = jax.eval_shape(lambda key: Decoder(attention_config, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    flags = jax.ShapeDtypeStruct((batch, length), jnp.bool_)

    def text(chunk):
        def loss(model, *arrays):
            return loss_sums(model, Batch(*arrays), Dense(), 0.0, chunk)[0]

        return jax.jit(jax.grad(loss)).lower(model, tokens, tokens, flags, flags).as_text()

    whole = f"tensor<{batch}x{length}x{attention_config.vocab_size}x"
    assert whole in text(length)
    assert whole not in text(4)
