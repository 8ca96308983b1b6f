import re

import pytest

from ratjax.config.data import DataConfig, DataStage, schedule
from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError

SOURCE = (("folder", 1.0),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("memory_learning_rate", -1.0),
        ("end_learning_rate", 1.0),
        ("end_learning_rate", -1e-9),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("beta2", 1.0),
        ("clip_norm", 0.0),
        ("steps", -1),
        ("microbatches", 0),
        ("loss_chunk", 0),
        ("log_every", 0),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("keep_every", 1500),
        ("keep_best", -1),
        ("held_out_batches", 0),
        ("held_out_every", -1),
        ("on_bad_step", "retry"),
        ("max_skipped", 0),
        ("spike", -1.0),
        ("spike_window", 0),
        ("watchdog", -1.0),
        ("grace_seconds", -1.0),
        ("profile", "10"),
        ("profile", "0:3"),
        ("profile", "5:4"),
        ("recurrence_dilation", 0),
        ("seed", 2**32),
    ],
)
def test_refused_values_name_their_field(field, value):
    with pytest.raises(ConfigError, match=re.escape(f"train.{field}={value!r}: must")):
        TrainConfig(**{field: value})


def test_steps_to_trace_include_both_ends():
    assert list(TrainConfig(profile="10:12").profiled_steps) == [10, 11, 12]
    assert not TrainConfig().profiled_steps


def test_weights_of_held_out_folders_are_positive():
    with pytest.raises(ConfigError, match="weight of 'a' must be above 0"):
        TrainConfig(held_out=(("a", 0.0),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "data.stages.steps=0"),
        ({"sequence_length": 0}, "data.stages.sequence_length=0"),
        ({"batch_size": 0}, "data.stages.batch_size=0"),
        ({"sources": ()}, "at least one folder"),
        ({"sources": (("a", 0.0),)}, "weight of 'a' must be above 0"),
        ({"recurrence": "on"}, "must be one of 'two_step', 'summed', 'off'"),
    ],
)
def test_refused_stages(change, message):
    fields = {"steps": 1, "sequence_length": 8, "batch_size": 2, "sources": SOURCE}
    with pytest.raises(ConfigError, match=message):
        DataStage(**{**fields, **change})


def test_refused_data():
    with pytest.raises(ConfigError, match=r"data.prefetch=0"):
        DataConfig(prefetch=0)
    with pytest.raises(ConfigError, match='must read "module:function"'):
        DataConfig(prepare="module.function")
    with pytest.raises(ConfigError, match="at least one stage"):
        schedule(TrainConfig(), DataConfig())
    data = DataConfig((DataStage(1, 8, 6, SOURCE),))
    with pytest.raises(ConfigError, match=r"must divide data.stages.batch_size=6"):
        schedule(TrainConfig(microbatches=4), data)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (0, [(0, 3), (3, 7)]),
        (3, [(0, 3)]),
        (2, [(0, 2)]),
        (5, [(0, 3), (3, 5)]),
        (20, [(0, 3), (3, 20)]),  # the last stage runs on
    ],
)
def test_schedule(steps, expected):
    data = DataConfig((DataStage(3, 8, 2, SOURCE), DataStage(4, 16, 2, SOURCE)))
    spans = schedule(TrainConfig(steps=steps), data)
    assert [(span.start, span.stop) for span in spans] == expected
    assert [span.stage for span in spans] == list(data.stages[: len(spans)])
