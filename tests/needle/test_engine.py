"""The evaluation engine on an untrained model: cells, costs, batching, stop tokens."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from ratjax.config.model import MemoryConfig
from ratjax.config.needle import NeedleConfig, Setting
from ratjax.config.presets import preset, with_memory
from ratjax.errors import ConfigError, InputError
from ratjax.model import Decoder
from ratjax.needle import engine
from ratjax.needle.outputs import write_outputs

CONFIG = NeedleConfig(
    tasks=("niah_single_1", "niah_multikey_2"),
    context_length=256,
    tokens_to_generate=8,
    block_size=16,
    window=16,
    budgets=("1/4",),
    batch_size=4,
)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = dataclasses.replace(preset("tiny"), vocab_size=tokenizer.get_vocab_size())
    config = with_memory(config, MemoryConfig(init="log_uniform"))
    return jax.jit(lambda: Decoder(config, jax.random.key(0)))()


@pytest.fixture(scope="module")
def evaluated(model, tokenizer):
    labels = {"run": "test", "backbone": "memory", "train_seed": 0}
    return engine.evaluate(model, tokenizer, CONFIG, 3, labels)


def test_one_cell_a_setting_and_task(evaluated):
    results, predictions = evaluated
    assert len(results) == 4 * 2
    assert len(predictions) == 4 * 2 * 3
    assert [r["method"] for r in results[::2]] == ["dense", "quest", "moba", "snapkv"]
    for result in results:
        low, high = result["ci95"]
        assert 0 <= low <= result["score_strict"] <= high <= 100
        assert result["samples"] == 3
        assert result["context_length"] == 256


def test_read_fractions_are_those_of_the_budget(evaluated):
    by_method = {r["method"]: r for r in evaluated[0]}
    assert by_method["dense"]["kv_read_fraction"] == 1
    # A quarter of 256 entries, of contexts of about 248 to 256 tokens.
    assert 0.2 < by_method["quest"]["kv_read_fraction"] < 0.27
    assert 0.25 < by_method["snapkv"]["kv_read_fraction"] < 0.30
    assert by_method["quest"]["kv_read_fraction_prefill"] == 1
    assert by_method["moba"]["kv_read_fraction_decode"] == 1
    assert by_method["moba"]["kv_read_fraction"] < 0.5


def test_batch_size_changes_no_answer(model, tokenizer, evaluated):
    labels = {"run": "test", "backbone": "memory", "train_seed": 0}
    again = engine.evaluate(model, tokenizer, dataclasses.replace(CONFIG, batch_size=5), 3, labels)
    assert [p["prediction"] for p in again[1]] == [p["prediction"] for p in evaluated[1]]


def test_prompts_do_not_depend_on_the_number_of_samples(tokenizer):
    few = engine.build_prompts(CONFIG, 2, tokenizer)
    many = engine.build_prompts(CONFIG, 3, tokenizer)
    assert [p.row["input"] for p in few[:2]] == [p.row["input"] for p in many[:2]]


def test_answers_end_at_the_stop_token(tokenizer):
    stop = engine.stop_token_of(tokenizer)
    tokens = np.array([*tokenizer.encode("123,45").ids, stop, *tokenizer.encode("6").ids])
    assert engine.answer_text(tokenizer, tokens, stop) == "123,45"


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    state = json.loads(tokenizer.to_str().replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(InputError, match="endoftext"):
        engine.stop_token_of(Tokenizer.from_str(json.dumps(state)))


def test_settings_expand_in_order():
    config = NeedleConfig(selectors=("original", "random"), selector_seeds=(0, 1))
    settings = config.settings()
    assert settings[0] == Setting("dense")
    assert len(settings) == 1 + 3 * 3 * 3
    assert len(set(settings)) == len(settings)
    quest = [s for s in settings if s.method == "quest"]
    assert [(s.k, s.budget) for s in quest[::3]] == [(16, "1/4"), (8, "1/8"), (4, "1/16")]
    assert {s.k for s in settings if s.method == "snapkv"} == {1024, 512, 256}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": ("1/3",)}, "whole number of tokens"),
        ({"budgets": ("1/128",)}, "no multiple"),
        ({"budgets": ("1/64",)}, "always keeps"),
        ({"budgets": ("a quarter",)}, "fraction"),
        ({"budgets": ("5/4",)}, "at most 1"),
        ({"tasks": ("niah_single_4",)}, "niah_single_3"),
        ({"methods": ("h2o",)}, "quest"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        NeedleConfig(**changes)
    assert "\n" not in str(error.value)


def test_outputs_are_json(evaluated, tmp_path):
    results, predictions = evaluated
    write_outputs(tmp_path / "needle", {"device": "cpu"}, results, predictions)
    written = json.loads((tmp_path / "needle" / "results.json").read_text())
    assert written == {"meta": {"device": "cpu"}, "results": results}
    lines = (tmp_path / "needle" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == predictions
