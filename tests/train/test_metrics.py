import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ratjax.config.data import DataStage, Span
from ratjax.train import metrics
from ratjax.train.board import Board
from ratjax.train.metrics import Recorder, drop_lines_after
from tests.train.conftest import read_metrics


def read_events(folder):
    """TensorBoard's records: length, its checksum, the event, its checksum."""
    events = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def test_board_writes_what_tensorboard_reads(tmp_path):
    board = Board(tmp_path, 4)
    board.text("formula", "a = b")
    board.scalars(5, {"train/loss": 1.5, "train/lr": 0.25})
    events = read_events(tmp_path)  # before it is closed: every record is on disk at once
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (4, SessionLog.START)
    assert events[2].summary.value[0].tensor.string_val == [b"a = b"]
    assert events[3].step == 5
    values = {value.tag: value.simple_value for value in events[3].summary.value}
    assert values == {"train/loss": 1.5, "train/lr": 0.25}
    board.close()


def test_lines_past_a_step_are_dropped_and_broken_ones_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_lines_after(path, 3)
    assert not path.exists()
    path.write_text('{"step": 2}\n{"step": 3}\n\n{"lo\n{"step": 4}\n{"step": 3, "lo')
    drop_lines_after(path, 3)
    assert path.read_text() == '{"step": 2}\n{"step": 3}\n'


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_speed_and_mfu(tmp_path, memory_config, train_config, clock, monkeypatch):
    monkeypatch.setattr(metrics, "peak_flops", lambda device: 1e6)
    spans = [
        Span(0, 5, 0, DataStage(5, 8, 4, (("a", 1.0),))),
        Span(5, 9, 1, DataStage(4, 16, 2, (("a", 1.0),), "two_step")),
    ]
    config = type(train_config)(log_every=2)
    waited = {"data": 3.0, "held-out": 0.0}
    recorder = Recorder(tmp_path, memory_config, config, 0, 9, seconds=waited)
    for step in range(1, 10):
        clock.now += 0.5
        waited["data"] += 0.125
        # a held-out loss takes time that is nobody's speed
        if step == 4:
            clock.now += 7.0
            waited["held-out"] += 7.0
        recorder.record(step, spans[step > 5], {"loss": 1.0 / step, "lr": 0.1})
    recorder.close()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]
    assert [line["loss"] for line in lines] == [1 / 2, 1 / 4, 1 / 6, 1 / 8, 1 / 9]
    # 32 tokens each half second; at step 6 the second stage's step is compiled
    assert [line["tokens_per_s"] for line in lines] == [64, 64, None, 64, 64]
    # an eighth of a second in each half one
    assert [line["data_seconds"] for line in lines] == [0.125, 0.25, None, 0.25, 0.125]
    assert [line["data_share"] for line in lines] == [0.25, 0.25, None, 0.25, 0.25]
    from ratjax.sparsity.dense import Dense
    from ratjax.sparsity.dilated import Dilated
    from ratjax.train.flops import step_flops

    dense = step_flops(memory_config, [Dense()], 8, 4)
    both = step_flops(memory_config, [Dilated(64), Dense()], 16, 2)
    expected = [dense / 0.5 / 1e6, dense / 0.5 / 1e6, None, both / 0.5 / 1e6, both / 0.5 / 1e6]
    for line, mfu in zip(lines, expected, strict=True):
        assert line["mfu"] == (None if mfu is None else pytest.approx(mfu))
    last = read_events(tmp_path / "tensorboard")[-1]
    assert last.step == 9 and {v.tag for v in last.summary.value} == {
        "train/loss",
        "train/lr",
        "train/tokens_per_s",
        "train/mfu",
        "train/data_seconds",
        "train/data_share",
    }
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
