import numpy as np
import pytest

from ratjax.data.order import Mixture, shuffle_key, shuffled


def endless(count, size, *key):
    """The first `count` records of an endless shuffle of 0..size-1."""
    return shuffled(
        np.arange(count),
        np.full(count, size),
        np.full(count, shuffle_key(*key), np.uint64),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 10, 99, 1000, 4097])
def test_each_epoch_is_a_permutation(size):
    records = endless(3 * size, size, 7, 0, 0).reshape(3, size)
    for epoch in records:
        assert np.array_equal(np.sort(epoch), np.arange(size))


def test_epochs_and_keys_differ():
    first = endless(2000, 1000, 7, 0, 0)
    assert not np.array_equal(first[:1000], first[1000:])
    for other in ((8, 0, 0), (7, 1, 0), (7, 0, 1)):
        assert not np.array_equal(first, endless(2000, 1000, *other))


def test_order_does_not_depend_on_what_else_is_asked_for():
    whole = endless(500, 123, 3)
    for step in range(0, 500, 50):
        positions = np.arange(step, step + 50)
        keys = np.full(50, shuffle_key(3), np.uint64)
        assert np.array_equal(shuffled(positions, np.full(50, 123), keys), whole[step : step + 50])


def test_order_is_fixed_for_all_time():
    # A checkpoint holds a step number alone: another order would silently repeat data.
    assert endless(12, 10, 1005, 0, 0).tolist() == [5, 9, 4, 1, 3, 8, 0, 2, 6, 7, 4, 6]


def test_shuffle_has_no_visible_structure():
    size = 10_000
    order = endless(size, size, 1)
    # For a random permutation both correlations have standard deviation 1/sqrt(10000) = 0.01.
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    # and the number of fixed points is Poisson with mean 1.
    assert (order == np.arange(size)).sum() < 8


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 1.0), (0.5, 0.3, 0.2), (1e-9, 1.0), (7.0, 2.0, 90.0, 1.0)]
)
def test_mixture_deals_in_proportion_and_leaves_no_record_out(weights):
    records = np.arange(30_000)
    source, position = Mixture(weights).deal(records)
    for s, weight in enumerate(weights):
        mine = position[source == s]
        assert np.array_equal(mine, np.arange(len(mine)))
        share = weight / sum(weights)
        assert abs(len(mine) / len(records) - share) <= 1.5e-4  # the weights' resolution


def test_every_stretch_of_a_mixture_is_mixed():
    source, _ = Mixture((0.5, 0.3, 0.2)).deal(np.arange(10_000))
    for batch in source.reshape(-1, 20):
        counts = np.bincount(batch, minlength=3)
        assert np.all(np.abs(counts - [10, 6, 4]) <= 1)
