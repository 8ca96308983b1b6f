import dataclasses
import json

import pytest

from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.overrides import (
    changes,
    from_mapping,
    leaves,
    to_config_dict,
    to_json,
    type_name,
)
from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError, InputError

EXPERIMENT = Experiment(
    "tiny",
    ModelConfig(64, 32, 2, 4, 2, 8, 64),
    memory=MemoryConfig(init="log_uniform"),
    train=TrainConfig(memory_learning_rate=1e-2),
    data=DataConfig((DataStage(5, 16, 4, (("a", 1.0), ("b", 2.0)), "two_step"),)),
)


@pytest.mark.parametrize("config", [EXPERIMENT, EXPERIMENT.model_config("memory"), TrainConfig()])
def test_config_dict_and_json_round_trips(config):
    kind = type(config)
    assert from_mapping(kind, to_config_dict(config)) == config
    assert from_mapping(kind, json.loads(json.dumps(to_json(config)))) == config


def test_edits_of_a_config_dict_arrive():
    config = to_config_dict(EXPERIMENT)
    config.train.steps = 7
    config.train.learning_rate = 1  # a whole number where a float belongs
    config.data.stages[0].steps = 3
    config.needle.tasks = ("niah_single_1",)
    edited = from_mapping(Experiment, config)
    assert (edited.train.steps, edited.train.learning_rate) == (7, 1.0)
    assert isinstance(edited.train.learning_rate, float)
    assert edited.data.stages[0].steps == 3
    assert edited.needle.tasks == ("niah_single_1",)
    assert EXPERIMENT.train.steps == 0


def test_unset_optional_fields_know_their_type():
    config = to_config_dict(TrainConfig())
    assert config.memory_learning_rate is None
    assert config.get_type("memory_learning_rate") is float


def set_field(path, value):
    config = to_config_dict(EXPERIMENT)
    *parents, name = path.split(".")
    holder = config
    for parent in parents:
        holder = holder[parent]
    with holder.unlocked():
        holder[name] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trian", 1, "trian: unknown field; did you mean train"),
        ("train.stepz", 1, "train.stepz: unknown field; did you mean steps"),
        ("train.zzz", 1, "train.zzz: unknown field; known: beta1, beta2"),
        ("train.steps", "ten", "train.steps='ten': must be of type int"),
        ("train.steps", 1.5, "train.steps=1.5: must be of type int"),
        ("train.steps", True, "train.steps=True: must be of type int"),
        ("train.steps", None, "train.steps=None: must be of type int"),
        ("train.init_from", 3, "train.init_from=3: must be of type str"),
        ("model.qk_norm", 1, "model.qk_norm=1: must be of type bool"),
        ("train", 3, "train=3: must be the fields of a TrainConfig"),
        ("data.stages", "abc", "data.stages='abc': must be a tuple"),
        ("data.stages", (3,), r"data.stages\[0\]=3: must be the fields of a DataStage"),
        ("train.warmup", 1.0, "train.warmup=1.0: must be at least 0 and below 1"),
    ],
)
def test_bad_values_are_named_with_their_path(path, value, message):
    with pytest.raises(InputError, match=message):
        from_mapping(Experiment, set_field(path, value))


def test_bad_items_of_nested_tuples_are_named():
    config = to_config_dict(EXPERIMENT)
    config.data.stages[0].sources = (("a", 1.0), ("b",))
    with pytest.raises(ConfigError, match=r"data.stages\[0\].sources\[1\]=.*needs 2 items, has 1"):
        from_mapping(Experiment, config)


def test_missing_fields_are_named():
    with pytest.raises(InputError, match=r"model.vocab_size: missing"):
        from_mapping(ModelConfig, {}, "model.")


def test_changes_lists_the_leaves_that_differ():
    stage = dataclasses.replace(EXPERIMENT.data.stages[0], steps=9)
    other = dataclasses.replace(
        EXPERIMENT,
        train=TrainConfig(),
        data=DataConfig((stage,), tokenizer="t.json"),
    )
    assert list(changes(to_json(EXPERIMENT), to_json(other))) == [
        ("data.stages[0].steps", 5, 9),
        ("data.tokenizer", "", "t.json"),
        ("train.memory_learning_rate", 0.01, None),
    ]
    assert list(changes(to_json(other), to_json(other))) == []


def test_every_field_of_an_experiment_is_documented():
    fields = list(leaves(Experiment))
    assert {"train.steps", "data.stages", "model.vocab_size"} <= {field.name for field in fields}
    assert [field.name for field in fields if not field.doc] == []
    assert all(type_name(field.annotation) for field in fields)
