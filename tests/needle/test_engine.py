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
from ratjax.model import generate
from ratjax.needle import cost, engine
from ratjax.needle.batching import Prompt, batches
from ratjax.needle.outputs import write_outputs
from ratjax.needle.runner import Runner, groups
from ratjax.needle.settings import pattern_of
from ratjax.train.flops import matmul_weights
from tests.decoders import initial

CONFIG = NeedleConfig(
    tasks=("niah_single_1", "niah_multikey_2"),
    context_length=256,
    tokens_to_generate=8,
    block_size=16,
    window=16,
    budgets=("1/4",),
    batch_size=4,
    prefill_batch=2,
)


LABELS = {"run": "test", "backbone": "memory", "train_seed": 0}


@pytest.fixture(scope="module")
def model(tokenizer):
    config = dataclasses.replace(preset("tiny"), vocab_size=tokenizer.get_vocab_size())
    config = with_memory(config, MemoryConfig(init="log_uniform"))
    made = initial(config)
    # Wider weights than at the start of training: what is read then changes what is said.
    return jax.tree.map(lambda a: a * 3 if a.ndim > 2 else a, made)


@pytest.fixture(scope="module")
def evaluated(model, tokenizer):
    return engine.evaluate(model, tokenizer, CONFIG, 3, LABELS)


def test_one_cell_a_setting_and_task(evaluated):
    results, predictions = evaluated.results, evaluated.predictions
    assert len(results) == 4 * 2
    assert len(predictions) == 4 * 2 * 3
    assert [r["method"] for r in results[::2]] == ["dense", "quest", "moba", "snapkv"]
    for result in results:
        low, high = result["ci95"]
        assert 0 <= low <= result["score_strict"] <= high <= 100
        assert result["samples"] == 3
        assert result["context_length"] == 256


def test_read_fractions_are_those_of_the_budget(evaluated):
    by_method = {r["method"]: r for r in evaluated.results}
    assert by_method["dense"]["kv_read_fraction"] == 1
    # A quarter of 256 entries, of contexts of about 248 to 256 tokens.
    assert 0.2 < by_method["quest"]["kv_read_fraction"] < 0.27
    assert 0.25 < by_method["snapkv"]["kv_read_fraction"] < 0.30
    assert by_method["quest"]["kv_read_fraction_prefill"] == 1
    assert by_method["moba"]["kv_read_fraction_decode"] == 1
    assert by_method["moba"]["kv_read_fraction"] < 0.5


def test_costs_are_those_of_the_budget(evaluated, model):
    by_method = {r["method"]: r for r in evaluated.results}
    dense = by_method["dense"]
    prompts = [p["length"] for p in evaluated.prompts if p["task"] == dense["task"]]
    position = 2 * 2 * 2 * 16 * 4  # keys and values, 2 layers, 2 heads of 16, float32
    state = position  # the memory's two vectors a layer and head, in float32 too
    assert dense["cache_bytes"] == np.mean(prompts) * position + state
    assert by_method["snapkv"]["cache_bytes"] == 64 * position + state
    assert dense["cache_bytes"] < by_method["quest"]["cache_bytes"] < 1.1 * dense["cache_bytes"]
    assert by_method["moba"]["prefill_flops"] < dense["prefill_flops"]
    assert dense["prefill_flops"] > 2 * np.mean(prompts) * matmul_weights(model.config)
    assert by_method["snapkv"]["kv_bytes_per_token"] < 0.35 * dense["kv_bytes_per_token"]
    # A step later than the prompt, by the half of the steps there are; the state is read too.
    steps = (dense["kv_bytes_per_token"] - state) / position - np.mean(prompts)
    assert 0 < steps <= CONFIG.tokens_to_generate / 2


def test_costs_of_keeping_two_sets():
    config = with_memory(preset("tiny"), MemoryConfig())
    of = lambda setting, **given: cost.cache_bytes(  # noqa: E731
        config, pattern_of(dataclasses.replace(setting, **given)), 200
    )
    both = of(QUEST) + 200 * cost.position_bytes(config)
    assert of(QUEST, select_with="raw") == of(QUEST, attend_to="raw") == both
    # One set is enough where both are raw, where nothing looks at keys, and after prefill.
    assert of(QUEST, select_with="raw", attend_to="raw") == of(QUEST)
    assert of(QUEST, selector="random", attend_to="raw") == of(QUEST, selector="random")
    for setting in (MOBA, SNAPKV):
        assert of(setting, select_with="raw") == of(setting, attend_to="raw") == of(setting)
    read = [cost.decode_bytes(config, pattern_of(s), 200, 64)
            for s in (QUEST, dataclasses.replace(QUEST, select_with="raw"))]  # fmt: skip
    assert read[0] == read[1]


def test_times_are_apart_from_results(evaluated):
    assert len(evaluated.timing) == 4
    assert not [f for r in evaluated.results for f in r if "seconds" in f or "_per_s" in f]
    for row in evaluated.timing:
        assert row["tokens_per_s"] > 0
        assert row["seconds_per_prompt"] == row["prefill_seconds"] + row["decode_seconds"]


def test_every_prompt_is_stored_once_and_named(evaluated):
    stored = {row["prompt"]: row for row in evaluated.prompts}
    assert len(stored) == len(evaluated.prompts) == 2 * 3
    for prediction in evaluated.predictions:
        row = stored[prediction["prompt"]]
        assert (row["task"], row["index"]) == (prediction["task"], prediction["index"])
        assert row["input"] and row["outputs"]


QUEST, MOBA = Setting("quest", 16, 4, "1/4"), Setting("moba", 16, 4, "1/4")
SNAPKV = Setting("snapkv", 1, 64, "1/4", window=16)
DRAWN = {"selector": "random", "selector_seed": 3}
FEW = (QUEST, MOBA, SNAPKV)  # with the programs of CONFIG's settings
EVERY_METHOD = (
    Setting("dense"),
    *FEW,
    *(dataclasses.replace(one, **DRAWN) for one in FEW),
    Setting("dilated", 8, 0, "1/4", local=16, initial=4),
    Setting("dilated", 8, 4, "1/4", page_size=16),
    *(dataclasses.replace(one, golden=g) for one in (QUEST, SNAPKV) for g in ("in", "out")),
    dataclasses.replace(QUEST, select_with="raw"),
    dataclasses.replace(MOBA, attend_to="raw"),
    dataclasses.replace(SNAPKV, select_with="raw", attend_to="raw"),
    dataclasses.replace(SNAPKV, select_with="raw", golden="in"),
)


def mixed(tokenizer):
    """Prompts of mixed lengths that share a width, and what the right answers need of them."""
    config = dataclasses.replace(CONFIG, hit_rates=True)
    return [
        Prompt({**p.row, "number": i}, p.tokens[: 195 + 9 * i], p.answer,
               tuple(n if n < 195 else -1 for n in p.needed))
        for i, p in enumerate(engine.build_prompts(config, 4, tokenizer))
    ]  # fmt: skip


def answered(model, tokenizer, settings, batch_size, prefill_batch):
    """What each setting says to each of the mixed prompts, and the runner."""
    config = dataclasses.replace(CONFIG, batch_size=batch_size, prefill_batch=prefill_batch)
    runner = Runner(model, config, settings, engine.stop_token_of(tokenizer), 8)
    found, widths = {}, set()
    for batch in batches(mixed(tokenizer), batch_size, prefill_batch):
        widths.add(batch.tokens.shape[1])
        for group in groups(settings):
            for answers in runner.run(batch, group, group.places):
                for prompt, tokens in zip(batch.prompts, answers.tokens, strict=False):
                    found[answers.place, prompt.number] = tokens
    assert len(found) == len(settings) * 8 and len(widths) == 1
    return found, runner


@pytest.mark.slow
def test_batches_equal_prompts_one_by_one_under_every_method(model, tokenizer):
    together, _ = answered(model, tokenizer, EVERY_METHOD, 6, 2)
    alone, _ = answered(model, tokenizer, EVERY_METHOD, 1, 1)
    for key, tokens in together.items():
        np.testing.assert_array_equal(tokens, alone[key], err_msg=str(EVERY_METHOD[key[0]]))
    said = {tuple(tokens) for tokens in together.values()}
    assert len(said) > 16  # prompts and settings do not all say the same


def test_batches_equal_prompts_one_by_one(model, tokenizer):
    """Token for token, prompts of mixed lengths together, against `generate` on each."""
    found, runner = answered(model, tokenizer, FEW, CONFIG.batch_size, CONFIG.prefill_batch)
    prompts, stop = mixed(tokenizer), engine.stop_token_of(tokenizer)
    for (place, number), tokens in found.items():
        setting, prompt = FEW[place], prompts[number]
        alone = generate(
            model, prompt.tokens[None], [len(prompt.tokens)], CONFIG.tokens_to_generate,
            pattern_of(setting), stop_token=stop, seed=setting.selector_seed, rows=[number],
        )  # fmt: skip
        np.testing.assert_array_equal(tokens, alone.tokens[0])
    said = {tuple(tokens) for tokens in found.values()}
    assert len(said) > 8  # prompts and settings do not all say the same
    # Prefill: Quest and SnapKV share one.
    assert len(runner.programs) == 2 + 3


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
        ({"prefill_batch": 3}, "must divide needle.batch_size=32"),
        ({"dtype": "float16"}, "bfloat16"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        NeedleConfig(**changes)
    assert "\n" not in str(error.value)


def test_outputs_are_json(evaluated, tmp_path):
    folder = tmp_path / "needle"
    write_outputs(folder, {"device": "cpu"}, [evaluated, evaluated], {"date": "today"})
    written = json.loads((folder / "results.json").read_text())
    assert written == {"meta": {"device": "cpu"}, "results": 2 * evaluated.results}
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == 2 * evaluated.predictions
    # Two backbones with one tokenizer have the same prompts.
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == evaluated.prompts
    timing = json.loads((folder / "timing.json").read_text())
    assert timing == {"meta": {"date": "today"}, "timing": 2 * evaluated.timing}
