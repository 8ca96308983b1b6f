"""TensorBoard event files, written on the spot.

tensorboardX's usual `SummaryWriter` hands every value through a queue between processes to a
thread, which costs more than writing it and may take long to close. A record here is written
where it arises; the format is tensorboardX's.
"""

import os
import pathlib
import time
from collections.abc import Mapping

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class Board:
    """An event file in `folder`; TensorBoard hides what earlier files there say of `start` on."""

    def __init__(self, folder: pathlib.Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{start}")
        self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def text(self, name: str, text: str) -> None:
        """Adds Markdown text."""
        self._write(Event(summary=summary.text(name, text)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each of the named curves."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.writer.write_event(event)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
