"""Needle-in-a-haystack evaluation: prompts, training rows, scores.

    from ratjax import needle

    rows = needle.generate("niah_single_2", tokenizer, context_length=4096, samples=500, seed=42)

Source of the tasks: RULER (Hsieh et al. 2024, arXiv 2404.06654; repository NVIDIA/RULER).
"""

from ratjax.needle.copying import CopyRows
from ratjax.needle.drawing import generate
from ratjax.needle.drills import DrillRows
from ratjax.needle.essays import Essays, load_essays
from ratjax.needle.intervals import confidence_interval
from ratjax.needle.rowfile import Rows, write_rows
from ratjax.needle.rows import NeedleRows, build_rows
from ratjax.needle.score import percent, ruler, strict
from ratjax.needle.tasks import TASKS, Task, find_task

__all__ = [
    "TASKS",
    "CopyRows",
    "DrillRows",
    "Essays",
    "NeedleRows",
    "Rows",
    "Task",
    "build_rows",
    "confidence_interval",
    "find_task",
    "generate",
    "load_essays",
    "percent",
    "ruler",
    "strict",
    "write_rows",
]
