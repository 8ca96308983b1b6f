"""One small prompt of every task, word for word.

The texts in golden/ were read by a person when they were made. A change here changes every
evaluation set: old and new results are then no longer comparable.
"""

from pathlib import Path

import pytest

from ratjax.needle import TASKS
from ratjax.needle.prompts import Draft

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", TASKS)
def test_prompt_is_the_golden_one(name, essays):
    task = TASKS[name]
    draft = Draft(task, 7, 0, essays if task.haystack == "essay" else None)
    text = draft.text(70 if task.haystack == "essay" else 3)
    assert f"{text}\n---\n{','.join(draft.answers)}\n" == (GOLDEN / f"{name}.txt").read_text(
        "utf-8"
    )
