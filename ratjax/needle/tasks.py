"""The eight needle-in-a-haystack tasks of RULER: what is hidden where, and what is asked.

Source: RULER (Hsieh et al. 2024, arXiv 2404.06654) and its repository, NVIDIA/RULER.
"""

import dataclasses

from ratjax.errors import ConfigError, InputError, check_choice, check_positive, nearest

HAYSTACKS = ("noise", "essay", "needle")
VALUE_TYPES = ("words", "numbers", "uuids")

# Shares of an essay haystack, in percent, at which a needle may stand.
DEPTHS = tuple(round(100 * step / 39) for step in range(40))


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task hides and asks. Any combination works, not only RULER's eight.

    Attributes:
      name: RULER's name. Part of the random stream: another name draws other prompts.
      label: the short name used in tables.
      haystack: `noise` (one paragraph repeated), `essay`, or `needle` (further needles of the
        same types, which nobody asks about).
      key_type: `words`, `numbers` or `uuids`.
      value_type: likewise.
      keys: needles' keys, not counting those of a needle haystack.
      values: needles per key, each with its own value.
      queries: keys that the question names; all their values are the answer.
    """

    name: str
    label: str
    haystack: str
    key_type: str
    value_type: str
    keys: int = 1
    values: int = 1
    queries: int = 1

    def __post_init__(self):
        check_choice("task.haystack", self.haystack, HAYSTACKS)
        check_choice("task.key_type", self.key_type, VALUE_TYPES)
        check_choice("task.value_type", self.value_type, VALUE_TYPES)
        for field in ("keys", "values", "queries"):
            check_positive(f"task.{field}", getattr(self, field))
        if self.queries > self.keys:
            raise ConfigError(
                "task.queries", self.queries, f"must be at most task.keys={self.keys}"
            )
        if self.haystack == "essay" and self.needles > len(DEPTHS):
            raise ConfigError(
                "task.keys",
                self.keys,
                f"an essay has {len(DEPTHS)} depths for needles, task.keys * task.values is "
                f"{self.needles}",
            )

    @property
    def needles(self) -> int:
        """Needles inserted into the haystack."""
        return self.keys * self.values

    @property
    def singular(self) -> bool:
        """Whether the question has one answer, and so is worded in the singular."""
        return self.queries * self.values == 1


TASKS = {
    task.name: task
    for task in (
        Task("niah_single_1", "S-1", "noise", "words", "numbers"),
        Task("niah_single_2", "S-2", "essay", "words", "numbers"),
        Task("niah_single_3", "S-3", "essay", "words", "uuids"),
        Task("niah_multikey_1", "MK-1", "essay", "words", "numbers", keys=4),
        Task("niah_multikey_2", "MK-2", "needle", "words", "numbers"),
        Task("niah_multikey_3", "MK-3", "needle", "uuids", "uuids"),
        Task("niah_multivalue", "MV", "essay", "words", "numbers", values=4),
        Task("niah_multiquery", "MQ", "essay", "words", "numbers", keys=4, queries=4),
    )
}


def find_task(task: str | Task) -> Task:
    """The task of this name; a `Task` is returned as it is.

    Raises:
      InputError: no task has this name.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise InputError(f"task={task!r}: no such needle task; {nearest(task, TASKS)}")
    return TASKS[task]
