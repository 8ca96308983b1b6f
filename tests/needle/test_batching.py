"""Prompts in batches: few shapes, every prompt once, short ones first."""

import itertools

import numpy as np
import pytest

from ratjax.needle.batching import MOST_PADDING, Prompt, batches, widths


def prompts(lengths):
    return [Prompt({"number": i}, np.full(n, i + 1, np.int32)) for i, n in enumerate(lengths)]


def test_prompts_of_nearly_one_length_have_one_width():
    assert set(widths([3700, 3900, 3968])) == {4096}
    assert widths([]) == []


def test_a_width_holds_its_prompts_and_is_worth_its_programs():
    lengths = sorted(np.random.default_rng(0).integers(1, 5000, 300).tolist())
    found = widths(lengths)
    assert all(n <= w for n, w in zip(lengths, found, strict=True))
    assert found == sorted(found)
    distinct = sorted(set(found))
    for narrow, wide in itertools.pairwise(distinct):
        assert wide >= MOST_PADDING * max(
            n for n, w in zip(lengths, found, strict=True) if w == narrow
        )
    assert len(distinct) <= 2.5 * np.log2(5000 / 16)


@pytest.mark.parametrize(("size", "rows"), [(4, 1), (4, 2), (100, 1), (100, 8)])
def test_every_prompt_counts_once(size, rows):
    lengths = [30, 200, 190, 31, 60, 198, 33, 30, 29, 180, 64]
    found = list(batches(prompts(lengths), size, rows))
    numbers = [p.number for batch in found for p in batch.prompts]
    assert sorted(numbers) == list(range(len(lengths)))
    assert [lengths[n] for n in numbers] == sorted(lengths)
    shapes = {}
    for batch in found:
        assert len(batch.prompts) <= size
        assert len(batch.lengths) % rows == 0
        assert shapes.setdefault(batch.tokens.shape[1], batch.tokens.shape) == batch.tokens.shape
        for row, length, number in zip(batch.tokens, batch.lengths, batch.numbers, strict=True):
            assert length == lengths[number]
            assert (row[:length] == number + 1).all() and not row[length:].any()
        assert (batch.numbers[len(batch.prompts) :] == batch.numbers[0]).all()
