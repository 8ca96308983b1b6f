"""Needle evaluations on meshes: the same answers, token for token, as on one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ratjax.config.needle import NeedleConfig, Setting
from ratjax.model.parameters import to_model
from ratjax.model.placement import placed_parameters
from ratjax.needle.batching import Prompt, batches
from ratjax.needle.runner import Runner, groups, parts
from tests.sharding.devices.cases import MEMORY, mesh_of
from tests.train.conftest import random_parameters

QUEST, MOBA = Setting("quest", 4, 3, "1/2"), Setting("moba", 4, 2, "1/2")
SNAPKV = Setting("snapkv", 1, 8, "1/3", window=2)
DRAWN = {"selector": "random", "selector_seed": 2}
WATCHED = (
    QUEST,
    dataclasses.replace(QUEST, golden="in"),
    dataclasses.replace(SNAPKV, golden="out", attend_to="raw"),
)
RANDOM = tuple(dataclasses.replace(one, **DRAWN) for one in (SNAPKV, QUEST, MOBA))
OTHERS = (
    Setting("dense"),
    MOBA,
    SNAPKV,
    Setting("dilated", 4, 0, "1/4", local=3, initial=2),
    Setting("dilated", 4, 3, "1/2", page_size=4),
    dataclasses.replace(QUEST, select_with="raw"),
    dataclasses.replace(MOBA, select_with="raw"),
)
NEW, PROMPTS = 5, 7
STOP = 63


def prompts():
    rng = np.random.default_rng(3)
    found = []
    for number in range(PROMPTS):
        tokens = rng.integers(0, MEMORY.vocab_size - 1, 10 + 2 * number, dtype=np.int32)
        answer, needed = rng.integers(0, 10, (2, 4)).tolist()
        found.append(Prompt({"number": number}, tokens, tuple(answer), tuple(needed)))
    return found


def answers(settings, mesh, hit_rates=False, prefill_batch=1):
    """Tokens, entries read and hits, by setting and prompt."""
    parameters = random_parameters(MEMORY)
    if mesh is not None:
        places = {name: a.sharding for name, a in placed_parameters(MEMORY, mesh).items()}
        parameters = jax.device_put(parameters, places)
    config = NeedleConfig(
        tokens_to_generate=NEW, batch_size=2, prefill_batch=prefill_batch, hit_rates=hit_rates
    )
    runner = Runner(to_model(MEMORY, parameters), config, settings, STOP, 4, mesh)
    found = {}
    for batch in batches(prompts(), 2 * parts(mesh), parts(mesh)):
        for group in groups(settings):
            for one in runner.run(batch, group, group.places):
                for row, prompt in enumerate(batch.prompts):
                    hits = None if one.hits is None else one.hits[:, row]
                    found[one.place, prompt.number] = (one.tokens[row], one.reads[row], hits)
    assert len(found) == PROMPTS * len(settings)
    return found


@functools.cache
def on_one_device(settings, hit_rates):
    return answers(settings, None, hit_rates)


def check(settings, sizes, hit_rates=False, prefill_batch=1):
    found = answers(settings, mesh_of(sizes), hit_rates, prefill_batch)
    wanted = on_one_device(settings, hit_rates)
    for key, (tokens, reads, hits) in found.items():
        np.testing.assert_array_equal(tokens, wanted[key][0], err_msg=str(key))
        np.testing.assert_allclose(reads, wanted[key][1], rtol=1e-6)  # means over heads
        np.testing.assert_array_equal(hits, wanted[key][2])
    said = {tuple(tokens) for tokens, *_ in found.values()}
    assert len(said) > len(settings)


def test_answers():
    check(RANDOM[:1], (2, 1, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sizes", "prefill_batch"),
    [
        (WATCHED, (2, 2, 2, 1), 1),
        (RANDOM[1:], (1, 1, 2, 1), 1),
        (OTHERS, (1, 4, 1, 1), 1),
        ((QUEST, SNAPKV), (4, 1, 1, 1), 0),
    ],
    ids=["watched", "random", "others", "at-once"],
)
def test_answers_of_every_method(settings, sizes, prefill_batch):
    check(settings, sizes, settings[0] == QUEST, prefill_batch)
