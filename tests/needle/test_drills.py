"""Drill rows: every question is about a fact of its row, and its answer is supervised."""

import re

import numpy as np
import pytest

from ratjax.errors import ConfigError, InputError
from ratjax.needle import CopyRows, DrillRows, build_rows


@pytest.mark.parametrize("keys", ["nouns", "words"])
@pytest.mark.parametrize("values", ["pairs", "numbers"])
@pytest.mark.parametrize("wording", ["short", "template"])
def test_questions_are_about_facts_of_the_row(keys, values, wording, tokenizer, eos_id):
    part = DrillRows(6, keys, values, 3, wording)
    rows = build_rows([part], tokenizer, length=200, eos_id=eos_id, seed=0)
    eos = tokenizer.id_to_token(eos_id)
    for tokens, mask in zip(rows.tokens, rows.loss_mask, strict=True):
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        facts = dict(re.findall(r"^(\S+) is: (\d+)\.$", text, re.MULTILINE))
        assert len(facts) >= 2
        assert {len(v) for v in facts.values()} == {2 if values == "pairs" else 7}
        # What is supervised: an answer and one EOS, for each question.
        starts = np.flatnonzero(mask & ~np.roll(mask, 1))
        assert len(starts) == min(3, len(facts))
        asked = []
        for start in starts:
            stop = start + int(np.argmin(mask[start:]))
            answer = tokenizer.decode(tokens[start:stop].tolist(), skip_special_tokens=False)
            assert answer.endswith(eos)
            before = tokenizer.decode(tokens[:start].tolist(), skip_special_tokens=False)
            question = before.replace(eos, "\n").splitlines()[-1]
            key = next(k for k in facts if k in question)
            assert answer == facts[key] + eos
            asked.append(key)
        assert len(set(asked)) == len(asked)


def test_rows_are_filled_with_facts(tokenizer, eos_id):
    rows = build_rows([DrillRows(20, questions=2)], tokenizer, length=128, eos_id=eos_id, seed=0)
    used = [np.flatnonzero(mask)[-1] + 1 for mask in rows.loss_mask]
    assert min(used) > 128 - 30  # one more fact, or its question, would not have fitted


def test_filling_copies_repeat_one_sequence(tokenizer, eos_id):
    rows = build_rows([CopyRows(30, (4, 20), "fill")], tokenizer, length=64, eos_id=eos_id, seed=0)
    periods = []
    for tokens, mask in zip(rows.tokens, rows.loss_mask, strict=True):
        period = int(np.argmax(mask)) - 1
        assert (tokens[period:] == tokens[:-period]).all()
        assert mask[period + 1 :].all() and not mask[: period + 1].any()
        periods.append(period)
    assert 4 <= min(periods) < 8 and 14 < max(periods) <= 20


def test_a_length_that_holds_no_fact_is_refused(tokenizer, eos_id):
    with pytest.raises(InputError, match="length=8: too short"):
        build_rows([DrillRows(1)], tokenizer, length=8, eos_id=eos_id, seed=0)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: DrillRows(1, keys="verbs"), "drill.keys"),
        (lambda: DrillRows(1, questions=0), "drill.questions"),
        (lambda: CopyRows(1, repeat="thrice"), "copy.repeat"),
    ],
)
def test_bad_fields_are_named(build, field):
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        build()
