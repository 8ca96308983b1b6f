"""What the main runs say: the paper's claims judged by intervals, and the result in a sentence."""

import math
import statistics
from collections.abc import Sequence

from docs.study.study import ARMS, NOT_RUN, PAIRS, Study
from ratjax.needle.random_effects import CrossedMean
from ratjax.needle.report import labels, paper
from ratjax.needle.report.markdown import pipe_table
from ratjax.needle.report.plain import PlainTable, Text
from ratjax.needle.report.records import Setting
from ratjax.needle.statistics import Estimate


def claims(study: Study) -> str:
    """The paper's claims, judged by intervals alone: above zero, below it, or neither."""
    rows = []
    for arm, against, _ in PAIRS:
        found = study.comparison(arm, against)
        if found is None:
            continue
        for setting, difference in found.averages.items():
            name = f"{arm} minus {against}, {found.group.setting_name(setting)}"
            rows.append(_judged(name, difference.interval, paper_gains(setting)))
        for heads, best in (("the best heads", True), ("all heads", False)):
            hits = hit_difference(study, arm, against, best)
            if hits is not None:
                rows.append(_judged(f"{arm} minus {against}, hit rate of {heads}", hits, []))
    if not rows:
        return NOT_RUN
    columns = ("Mean over tasks, seeds and prompts drawn", "The memory is", "Points [95 %]")
    columns += (" / ".join(paper.CHECKPOINTS.values()),)
    return pipe_table(PlainTable("claims", "", columns, tuple(rows), 2))


def paper_gains(setting: Setting) -> list[float]:
    """What the paper's memory gains under a setting, of either pair of its checkpoints."""
    gains = []
    for checkpoints in paper.CHECKPOINTS:
        sides = [paper.find(checkpoints, side, setting, None) for side in ARMS[:2]]
        if None not in sides:
            gains.append(sides[1].score - sides[0].score)
    return gains


def _judged(name: str, interval: Estimate | None, gains: Sequence[float]) -> tuple[Text, ...]:
    theirs = Text(" / ".join(map(labels.signed, gains)) or labels.DASH)
    if interval is None:
        return Text(name), Text("not told"), Text(labels.DASH), theirs
    said = "ahead" if interval.low > 0 else "behind" if interval.high < 0 else "not told"
    if gains and interval.high < min(gains):
        said += "; less than in the paper"
    ends = labels.interval(interval.low, interval.high)
    return Text(name), Text(said), Text(labels.signed(interval.mean), tail=f" {ends}"), theirs


def hit_difference(study: Study, arm: str, against: str, best: bool) -> Estimate | None:
    """Of two arms' mean hit rates the difference in points, with training seeds drawn at random.

    Args:
      study: all runs.
      arm: one of two.
      against: the other.
      best: of the best heads of each cell, or of all: runs keep 50, and the model has fewer.
    """
    sides = [
        {
            run.seed: statistics.fmean(
                100 * rate
                for hit in run.hits
                if hit["selector"] == "original"
                for rate, *_ in hit["top"][: hit["best"] if best else None]
            )
            for run in study.of("main", side)
            if run.hits
        }
        for side in (against, arm)
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if len(seeds) < 2:
        return None
    gains = [sides[1][seed] - sides[0][seed] for seed in seeds]
    spread = statistics.stdev(gains)
    error = spread / math.sqrt(len(gains))
    return CrossedMean(statistics.fmean(gains), error, len(gains) - 1.0, spread).interval()


def summary(study: Study) -> str:
    """The result in a sentence."""
    parts, told = [], []
    for arm, against, said in PAIRS:
        found = study.comparison(arm, against)
        if found is None:
            continue
        own = {s: found.averages[s] for s in found.group.main_settings if s in found.averages}
        told += [d.interval for d in own.values() if d.interval is not None]
        methods = dict.fromkeys(setting.method for setting in own)
        means = {
            method: statistics.fmean(d.points for s, d in own.items() if s.method == method)
            for method in methods
        }
        listed = [f"{labels.method(m)} {labels.signed(mean)}" for m, mean in means.items()]
        parts.append(said.format(labels.joined(listed)))
    if not parts:
        return NOT_RUN
    above, below = sum(i.low > 0 for i in told), sum(i.high < 0 for i in told)
    return (
        f"{'; '.join(parts)} (means over tasks and budgets; of {len(told)} intervals, one a pair, "
        f"method and budget, {above or 'none'} above zero and {below or 'none'} below)."
    )
