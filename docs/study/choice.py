"""Which tuning runs the rule chooses, from what is stored of them alone."""

import statistics
from collections.abc import Sequence

from docs.study.stored import Stored
from experiments.study import tuning

# Points of the dense mean that a run may be behind the best: 100 prompts a task tell no less apart.
WITHIN = 1.0


def candidates(runs: Sequence[Stored], backbone: str) -> list[Stored]:
    """A backbone's tuning runs on the data that both are compared on (`tuning.DATA`)."""
    return [
        run
        for run in runs
        if run.meta["run"] == "tuning"
        and run.arm == backbone
        and run.held_out_loss() is not None
        and tuning.has_the_data(backbone, run.meta["differs"])
    ]


def choose(runs: Sequence[Stored], backbone: str) -> Stored | None:
    """Of those nearly as good as the best at dense needles, the best at text; None: none was run.

    Args:
      runs: stored runs, of any kind.
      backbone: attention or memory.
    """
    found = candidates(runs, backbone)
    if not found:
        return None
    dense = [statistics.fmean(run.dense().values()) for run in found]
    good = [run for run, mean in zip(found, dense, strict=True) if mean >= max(dense) - WITHIN]
    return min(good, key=lambda run: run.held_out_loss())
