"""The search for the length, with tokenizers and guesses that make it hard."""

import numpy as np
import pytest

from ratjax.errors import InputError
from ratjax.needle import TASKS, fitting
from ratjax.needle.encoding import count
from ratjax.needle.fitting import Growth, essay_growth, fit, line_growth
from ratjax.needle.prompts import Draft


def test_growth_tables_invert():
    growth = Growth(np.array([0.0, 2.0, 2.0, 5.0]), 1.5, 0)
    assert [growth.tokens(n) for n in range(6)] == [0, 2, 2, 5, 6.5, 8]
    assert [growth.units(t) for t in (-3.0, 0.0, 1.9, 2.0, 4.9, 5.0, 6.4, 6.5, 8.1)] == [
        *(0, 0, 0, 2, 2, 3, 3, 4, 5)
    ]


def test_growth_without_tokens_is_refused():
    with pytest.raises(InputError, match="no tokens"):
        Growth(np.zeros(1), 0.0, 0)


def test_essay_growth_counts_the_essays_own_tokens(tokenizer, essays):
    growth = essay_growth(essays, tokenizer, 300)
    for words in (1, 2, 50, 299, 300):
        assert growth.tokens(words) == count(tokenizer, [essays.head(words)])[0]


def test_line_growth_is_exact_for_equal_lines(tokenizer):
    draft = Draft(TASKS["niah_single_1"], 0, 0, None)
    growth = line_growth(draft, tokenizer)
    few, many = count(tokenizer, [draft.text(11), draft.text(90)])
    assert growth.tokens(90) - growth.tokens(11) == many - few


# A growth that is right, far too small, far too large, and a table of no use.
GROWTHS = {
    "small": Growth(np.zeros(1), 1.0, 10**6),
    "large": Growth(np.zeros(1), 900.0, 10**6),
    "stuck": Growth(np.array([0.0, 1e6]), 1e6, 10**7),
}


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_1", "niah_multikey_2"])
def test_bad_guesses_only_cost_time(name, growth, tokenizer, essays):
    drafts = [Draft(TASKS[name], 0, index, essays) for index in range(3)]
    bare = count(tokenizer, [draft.text(0) for draft in drafts])
    for budget in (max(bare), max(bare) + 1, max(bare) + 300):
        found = fit(drafts, bare, tokenizer, budget, GROWTHS[growth])
        for draft, (units, encoding) in zip(drafts, found, strict=True):
            here, beyond = count(tokenizer, [draft.text(units), draft.text(units + 1)])
            assert here == len(encoding.ids) <= budget < beyond


def test_a_prompt_is_encoded_about_once(tokenizer, essays, monkeypatch):
    """Encoding is what generating costs."""
    encoded = []

    def counting(tokenizer, texts):
        encoded.extend(texts)
        return fitting_encode(tokenizer, texts)

    fitting_encode = fitting.encode
    monkeypatch.setattr(fitting, "encode", counting)
    for name in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        task = TASKS[name]
        draft_essays = essays if task.haystack == "essay" else None
        drafts = [Draft(task, 0, index, draft_essays) for index in range(20)]
        bare = count(tokenizer, [draft.text(0) for draft in drafts])
        if draft_essays is None:
            growth = line_growth(drafts[0], tokenizer)
        else:
            growth = essay_growth(essays, tokenizer, 900)
        encoded.clear()
        fit(drafts, bare, tokenizer, 900, growth)
        assert len(encoded) <= 2.5 * len(drafts)
