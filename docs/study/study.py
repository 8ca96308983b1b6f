"""All stored runs of the study, by list and arm, and their comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from docs.study.stored import Stored
from ratjax.needle.report.compare import Comparison, compare
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group, groups
from ratjax.needle.report.predictions import Predictions

NOT_RUN = "*Not run yet.*"
ARMS = ("attention", "memory", "attention_matched", "memory_published")
# What is compared: an arm with the memory, the one without it that it faces, and how the result's
# sentence says it.
PAIRS = (
    ("memory", "attention", "The memory that tuning chose gains {} points on the same data"),
    ("memory", "attention_matched", "{} over attention that has its compute"),
    ("memory_published", "attention", "the published gate and schedule gain {} on the same data"),
    ("memory_published", "attention_matched", "{} over attention with part of their compute"),
)


@dataclass(frozen=True)
class Study:
    """All stored runs."""

    runs: tuple[Stored, ...]

    def of(self, study: str, arm: str | None = None) -> list[Stored]:
        """The runs of a list, of one arm if it is named."""
        return [r for r in self.runs if r.meta["run"] == study and arm in (None, r.arm)]

    @cached_property
    def predictions(self) -> Predictions:
        """Of the main runs. Tuning runs share cells' names, and are not compared in pairs."""
        return {key: p for run in self.of("main") for key, p in run.predictions().items()}

    def group(self, **renamed: str) -> Group | None:
        """The main runs' rows: of `renamed` arms alone, under those names, or of all as they are.

        None where an arm that is asked for has not been run.
        """
        names = renamed or {arm: arm for arm in ARMS if self.of("main", arm)}
        if not names or not all(self.of("main", arm) for arm in names):
            return None
        rows = [
            replace(result, backbone=name)
            for arm, name in names.items()
            for run in self.of("main", arm)
            for result in run.results
        ]
        found, *_ = groups(rows)  # the shortest context
        return found

    def comparison(self, arm: str, against: str) -> Comparison | None:
        """An arm against another, which is called attention here so that it comes first."""
        if (arm, against) not in self._compared:
            group = self.group(**{against: "attention", arm: arm})
            found = None if group is None else compare(group, self.predictions)[0]
            self._compared[arm, against] = found
        return self._compared[arm, against]

    @cached_property
    def _compared(self) -> dict[tuple[str, str], Comparison | None]:
        return {}

    def content(self, group: Group, comparisons: Sequence[Comparison]) -> Content:
        """What the report's own tables and figures are made from."""
        return Content(
            runs=(),
            meta={},
            results=group.results,
            groups=(group,),
            comparisons=(tuple(comparisons),),
            predictions=self.predictions,
            training=(),
            hits=(),
            command="",
        )
