"""Hit rates: where an answer is copied from, what is counted, and that all of it is run."""

import dataclasses

import numpy as np
import pytest

from ratjax.config.needle import Setting
from ratjax.needle import engine, hits
from ratjax.needle.drawing import draw_prompts
from ratjax.needle.outputs import write_outputs
from ratjax.needle.report import labels
from tests.needle.test_engine import CONFIG, LABELS, SNAPKV, model

__all__ = ["model"]  # a fixture


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_3", "niah_multivalue"])
def test_an_answer_is_copied_from_where_it_stands(tokenizer, essays, task):
    drawn = draw_prompts(
        task, tokenizer, context_length=700, samples=4, seed=1, haystack=essays,
        tokens_to_generate=128,
    )  # fmt: skip
    for prompt in drawn:
        answer, needed = hits.targets(prompt, tokenizer)
        text = ",".join(prompt.draft.answers)
        assert tokenizer.decode(answer) == text
        assert len(needed) == len(answer) > 1
        copied = [prompt.encoding.tokens[place] for place in needed if place >= 0]
        # The prompt's tokens may be cut elsewhere, but hold the same characters in this order.
        assert needed.count(-1) <= len(prompt.draft.answers) - 1
        said = [tokenizer.id_to_token(a) for a, place in zip(answer, needed, strict=True)
                if place >= 0]  # fmt: skip
        assert all(set(a.strip(",")) & set(b) for a, b in zip(said, copied, strict=True))
        starts = [prompt.encoding.char_to_token(s) for s, _ in
                  prompt.draft.answer_spans(prompt.text)]  # fmt: skip
        assert set(starts) <= set(needed)


def test_packed_bits_are_the_same_bits():
    drawn = np.random.default_rng(0).random((3, 5)) < 0.5
    np.testing.assert_array_equal(hits.unpack(hits.pack(drawn), 3, 5), drawn)


def test_rates_ranks_and_what_a_hit_is_worth(monkeypatch):
    monkeypatch.setattr(hits, "TOP", 2)
    monkeypatch.setattr(hits, "OF", 6)
    found = np.zeros((4, 2, 3), bool)
    found[:3, 1, 2] = True  # three prompts of four
    found[0, 0, 1] = found[1, 1, 0] = True  # one of four each: the lower layer comes first
    right = ["7", "no", "7", "7"]
    answered = [
        ({"outputs": ["7"]}, {"prediction": said, "hits": hits.pack(bits)})
        for said, bits in zip(right, found, strict=True)
    ]
    summary = hits.summary(answered, 2, 3)
    assert summary["top"] == [[0.75, 1, 2], [0.25, 0, 1]] and summary["best"] == 2
    assert summary["rates"] == [[0, 0.25, 0], [0.25, 0, 0.75]]
    assert summary["given_hit"] == {"prompts": 3, "score_strict": 66.67}
    assert summary["given_miss"] == {"prompts": 1, "score_strict": 100.0}
    monkeypatch.setattr(hits, "OF", 12)  # the best one alone: what the second hit is no longer one
    few = [(row, {**line, "hits": hits.pack(bits)}) for (row, line), bits in
           zip(answered, found & (np.arange(6).reshape(2, 3) == 1), strict=True)]  # fmt: skip
    assert hits.summary(few, 2, 3)["best"] == 1
    with_all = [(row, {**line, "hits": hits.pack(np.ones((2, 3), bool))}) for row, line in answered]
    assert hits.summary(with_all, 2, 3)["given_miss"] == {"prompts": 0, "score_strict": None}


def only(*settings):
    """An evaluation of these settings with hit rates."""
    return dataclasses.replace(
        CONFIG, tasks=("niah_single_1",), dense=False, methods=(), extra=settings, hit_rates=True
    )


def test_an_evaluation_with_hit_rates(model, tokenizer, tmp_path):
    config = only(Setting("quest", 16, 17, "1"), SNAPKV)
    found = engine.evaluate(model, tokenizer, config, 3, LABELS)
    assert [row["method"] for row in found.hits] == ["quest", "snapkv"]
    everything, some = (np.array(row["rates"]) for row in found.hits)
    assert everything.shape == some.shape == (2, 4)
    assert (everything == 1).all() and (some < 1).any()
    assert found.hits[0]["given_miss"]["prompts"] == 0
    assert all(row["samples"] == 3 for row in found.hits)
    # The answers are those without watching.
    plain = engine.evaluate(
        model, tokenizer, dataclasses.replace(config, hit_rates=False), 3, LABELS
    )
    assert found.predictions == plain.predictions and plain.hits == []
    write_outputs(tmp_path, {}, [found])
    assert (tmp_path / "hits.json").exists()


@pytest.mark.parametrize(
    ("setting", "selector", "rate"),
    [
        (dataclasses.replace(SNAPKV, golden="out"), "original_golden_out", 0),
        *(
            pytest.param(Setting("quest", 16, 6, "3/8", **given), f"original_{name}", 1,
                         marks=pytest.mark.slow)
            for given, name in (
                ({"golden": "in"}, "golden_in"),
                ({"golden": "in", "select_with": "raw"}, "golden_in_select_with_raw"),
            )
        ),
    ],
)  # fmt: skip
def test_steered_settings_hit_always_or_never(model, tokenizer, setting, selector, rate):
    found = engine.evaluate(model, tokenizer, only(setting), 3, LABELS)
    (row,) = found.hits
    assert row["selector"] == selector
    assert (np.array(row["rates"]) == rate).all()


def test_steered_settings_have_names():
    assert labels.selector_suffix("random_golden_in") == ", random selector, answer forced in"
    named = labels.selector_suffix("original_select_with_raw_attend_to_raw")
    assert "raw" in named and "_" not in named
