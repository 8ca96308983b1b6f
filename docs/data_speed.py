"""Measures how fast batches are made, and writes the table of docs/data.md.

  python docs/data_speed.py [--folder=<where 1.3 GB are free>]

The stream holds random tokens, the rows are as many and as long as those of the needle
fine-tuning. "cold": what the system keeps of the files in memory is dropped first, so that every
window is read from the disk.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import tempfile
import time

import numpy as np

from ratjax.config.data import DataConfig, DataStage, schedule
from ratjax.config.train import TrainConfig
from ratjax.data import Batches, iterate, write_rows
from ratjax.data.stream import write_index

PAGE = pathlib.Path(__file__).parent / "data.md"
BEGIN, END = "<!-- table: docs/data_speed.py -->", "<!-- end of table -->"
LENGTH, VOCABULARY, EOS = 4096, 100_352, 100_257
TOKENS, ROWS = 200_000_000, 18_000


def make(folder: pathlib.Path) -> None:
    """A stream of random tokens in four files, and rows of a needle task's size."""
    draw = np.random.default_rng(0)
    (folder / "stream").mkdir()
    files = {}
    for number in range(4):
        name = f"{number:05d}.bin"
        draw.integers(0, EOS + 1, TOKENS // 4, dtype=np.uint32).tofile(folder / "stream" / name)
        files[name] = TOKENS // 4
    write_index(folder / "stream", files, EOS)
    tokens = draw.integers(0, EOS, (ROWS, LENGTH), dtype=np.int32)
    mask = np.zeros(tokens.shape, bool)
    mask[:, -32:] = True
    write_rows(folder / "rows", tokens, mask)
    os.sync()


def forget(folder: pathlib.Path) -> None:
    """Drops the files' pages from the system's memory."""
    for path in folder.rglob("*.*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def tokens_per_second(folder: pathlib.Path, sources, batch: int, steps: int, cold: bool) -> float:
    """Of an iterator with the default prefetch, from the first batch on."""
    stage = DataStage(steps, LENGTH, batch, tuple((str(folder / s), w) for s, w in sources))
    data, train = DataConfig((stage,)), TrainConfig()
    batches = Batches(schedule(train, data), train.seed, VOCABULARY)
    if cold:
        del batches  # pages that are mapped are kept
        forget(folder)
        batches = Batches(schedule(train, data), train.seed, VOCABULARY)
    began = time.perf_counter()
    iterator = iterate(batches, {"next_index": 0}, data.prefetch)
    for _ in range(steps):
        next(iterator)
    seconds = time.perf_counter() - began
    iterator.close()
    return steps * batch * LENGTH / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=None)
    lines = ["| source | batch | files | tokens/s |", "|---|---|---|---|"]
    cases = [("stream", [("stream", 1.0)]), ("rows", [("rows", 1.0)])]
    cases.append(("stream and rows, 3 : 1", [("stream", 3.0), ("rows", 1.0)]))
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        folder = pathlib.Path(name)
        make(folder)
        for label, sources in cases:
            for batch, steps in ((8, 200), (768, 8)):
                for cold in (True, False):
                    rates = [
                        tokens_per_second(folder, sources, batch, steps, cold) for _ in range(3)
                    ]
                    state = "cold" if cold else "in memory"
                    rate = sorted(rates)[1]
                    lines.append(f"| {label} | {batch} x {LENGTH} | {state} | {rate / 1e6:.1f}M |")
                    print(lines[-1], flush=True)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("grain", "numpy"))
    lines.append("")
    lines.append(
        f"Median of three, on {len(os.sched_getaffinity(0))} processors ({platform.machine()}), "
        f"Python {platform.python_version()}, {versions}."
    )
    before, rest = PAGE.read_text().split(BEGIN)
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
