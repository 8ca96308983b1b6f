"""The report's first paragraph, in words computed from the data."""

import math
import statistics
from collections.abc import Iterable

from ratjax.needle.report import labels, paper
from ratjax.needle.report.compare import (
    ALPHA,
    Comparison,
    Difference,
    dense_gap,
    median_discordance,
)
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.records import Setting
from ratjax.needle.statistics import detectable_difference, smallest_significant_difference

_TINY_PARAMETERS = 100_000_000
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def findings(content: Content) -> list[str]:
    """What was found: a paragraph a group, or one for each of its comparisons where it has more."""
    paragraphs = []
    for group, comparisons in zip(content.groups, content.comparisons, strict=True):
        prefix = f"{group_label(group)}: " if len(content.groups) > 1 else ""
        first = [_dense(group), *_alone(group, comparisons)]
        found = [[_kept(c), _by_method(c), _significance(c)] for c in comparisons] or [[]]
        found = [first, *found] if len(comparisons) > 1 else [first + found[0]]
        paragraphs += [prefix + " ".join(filter(None, sentences)) for sentences in found]
    return paragraphs


def caveats(content: Content) -> list[str]:
    """Sentences on what the numbers are not."""
    sentences = [text.rstrip(".") + "." for text in content.descriptions]
    size = content.parameters
    if size is not None and size < _TINY_PARAMETERS:
        sentences.append(
            f"The models are tiny (at most {_millions(size)} parameters): they show how the "
            "methods behave on a matched pair and that the whole path works, not what a language "
            "model of useful size would score."
        )
    if content.reference is None:
        sentences.append(
            "The paper's numbers, drawn faint, belong to other models (7B parameters, "
            f"{labels.count(paper.CONTEXT_LENGTH)} tokens) and enter no average here."
        )
    seeds = {result.train_seed for result in content.results}
    if len(seeds) > 1 and any(content.comparisons):
        sentences.append(
            "Intervals and tests of differences take training seeds and prompts for random draws: "
            "they speak about other trainings too, and with a handful of seeds they are wide."
        )
    if len(seeds) == 1:
        sentences.append(
            "With one training seed, intervals and tests speak about these trained models on other "
            "prompts, not about training them again."
        )
    return sentences


def group_label(group: Group) -> str:
    """ "256 tokens", with the run's name where runs are kept apart."""
    length = f"{labels.count(group.context_length)} tokens"
    return f"{group.run}, {length}" if group.run is not None else length


def test_name(comparison: Comparison) -> str:
    """The test behind the marks, in words."""
    name = "exact McNemar test on fully right answers"
    if comparison.seeds > 1:
        name += " and t test with seeds and prompts as random effects, both to be passed"
    return name


def resolution(comparison: Comparison) -> str:
    """The smallest difference that the prompts and seeds could show, and under which assumption."""
    tested = comparison.tested
    if not tested:
        return ""
    prompts = min(d.prompts for d in tested)
    tests = len(comparison.group.tasks)
    # Over several seeds a prompt is one answer of the test already where one of them differs.
    answers = prompts * min(d.seeds for d in tested)
    floor = smallest_significant_difference(prompts, tests, ALPHA) * prompts / answers
    best = (
        f"With {prompts} prompts a cell and {_spelled(tests)} {_plural('test', tests)} a setting, "
        f"no difference in fully right answers below {labels.number(floor)} points can be "
        "significant"
        if math.isfinite(floor)
        else f"With {prompts} prompts a cell no difference at all can be significant"
    )
    formula = (
        f"(m prompts, all favouring one side, give p = 2^(1{labels.MINUS}m), to be at most "
        f"{ALPHA:g}/{tests}; the difference is 100 m / {answers}"
        f"{', each in one seed alone' if answers > prompts else ''})"
    )
    usual = _usual_over_seeds if comparison.seeds > 1 else _usual_of_one_seed
    return f"{best} {formula}. {usual(tested, prompts, tests)}"


def _usual_of_one_seed(tested: list[Difference], prompts: int, tests: int) -> str:
    share = median_discordance(tested)
    usual = detectable_difference(prompts, share, tests, ALPHA)
    likely = (
        f"a difference of {labels.number(usual)} points would be found four times in five"
        if math.isfinite(usual)
        else "even a difference of that size would usually be missed"
    )
    return (
        f"Where {labels.number(100 * share, 0)} % of the prompts are answered by one side alone, "
        f"the median here, {likely} (Connor's formula for McNemar's test, at the same level)."
    )


def _usual_over_seeds(tested: list[Difference], prompts: int, tests: int) -> str:
    found = [d.over_seeds for d in tested if d.over_seeds is not None]
    seeds = min(d.seeds for d in tested)
    sizes = [one.detectable(tests, ALPHA) for one in found if one.error > 0]
    if not sizes:
        return ""
    alike = len(found) - len(sizes)
    where = "in the median cell"
    if alike:  # an error of zero says nothing of what would be found
        where += f" of those where answers differ ({alike} of {len(found)} have none that do)"
    return (
        f"With {_spelled(seeds)} seeds a difference of {labels.number(statistics.median(sizes))} "
        f"points would be found four times in five {where} (minimum detectable effect: "
        f"the standard error times the sum of the t distribution's points at 1{labels.MINUS}"
        f"{ALPHA:g}/{2 * tests} and 0.8; Bloom 1995)."
    )


def _dense(group: Group) -> str:
    dense = group.dense_setting
    if dense is None:
        return "No dense scores were given, so what is lost by sparse inference cannot be told."
    scores = [(b, group.average(b, dense)) for b in group.backbones]
    parts = [f"{b} scores {labels.number(s.mean)}" for b, s in scores if s is not None]
    if not parts:
        return ""
    prompts = f"{labels.DASH.join(map(str, _ends(group.samples)))} prompts a task"
    return (
        f"Reading everything (dense), {labels.joined(parts)} on average over "
        f"{_spelled(len(group.tasks))} needle {_plural('task', len(group.tasks))} "
        f"of {labels.count(group.context_length)} tokens (strict score, {prompts}{_seeds(group)})."
    )


def _seeds(group: Group) -> str:
    seeds = {result.train_seed for result in group.results}
    return f", mean of {_spelled(len(seeds))} training seeds" if len(seeds) > 1 else ""


def _ends(values: tuple[int, ...]) -> tuple[int, ...]:
    return values if len(values) == 1 else (values[0], values[-1])


def _alone(group: Group, comparisons: tuple[Comparison, ...]) -> list[str]:
    """With one backbone there is nothing to compare; say what sparse inference costs it."""
    if comparisons:
        return []
    (backbone,) = group.backbones
    gaps = [(s, dense_gap(group, backbone, s)) for s in group.sparse_settings]
    lists = _per_method(group, ((s, g) for s, g in gaps if g is not None))
    sentences = [f"Only {backbone} was evaluated, so there is no pair to compare."]
    if lists:
        sentences.append(f"Against its dense score it changes by (points): {lists}.")
    return sentences


def _kept(comparison: Comparison) -> str:
    group = comparison.group
    net = [
        other - own
        for s in group.main_settings
        if (own := dense_gap(group, comparison.baseline, s)) is not None
        and (other := dense_gap(group, comparison.other, s)) is not None
    ]
    if not net:
        return ""
    ahead, behind = sum(d > 0 for d in net), sum(d < 0 for d in net)
    total = len(net)
    if max(ahead, behind) == 0:
        return "Under sparse inference both kept the same share of their dense scores."
    first, second = (comparison.other, comparison.baseline)
    if behind > ahead:
        first, second, ahead, behind = second, first, behind, ahead
    every = ahead == total
    where = (
        f"all {_spelled(total)} sparse {_plural('setting', total)}"
        if every and total > 1
        else f"{_spelled(ahead)} of {_spelled(total)} sparse {_plural('setting', total)}"
    )
    tail = f", {second} in {_spelled(behind)}" if behind else ""
    return (
        f"Measured against its own dense score, {first} kept more than {second} in {where}{tail}."
    )


def _by_method(comparison: Comparison) -> str:
    group = comparison.group
    points = {s: d.points for s, d in comparison.averages.items()}
    main = [(s, points[s]) for s in group.main_settings if s in points]
    if not main:
        return ""
    text = (
        f"Difference of the average scores, {comparison.other} minus {comparison.baseline}, "
        f"in points: {_per_method(group, main)}."
    )
    others = [
        (s, points[s]) for s in group.sparse_settings if s in points and (s, points[s]) not in main
    ]
    return f"{text} With other selectors: {_per_method(group, others)}." if others else text


def _per_method(group: Group, values: Iterable[tuple[Setting, float]]) -> str:
    """ "Quest +1.0 (1/4), +2.0 (1/8); MoBA ..."."""
    lists: dict[str, list[str]] = {}
    for s, value in values:
        name = group.method_name(s).removesuffix(" selector")
        lists.setdefault(name, []).append(f"{labels.signed(value)} ({labels.budget(s.budget)})")
    return "; ".join(f"{name} {', '.join(found)}" for name, found in lists.items())


def _significance(comparison: Comparison) -> str:
    tested = comparison.tested
    if not tested:
        return "Without predictions of both on the same prompts no difference could be tested."
    marked = [d for d in tested if d.significant]
    cells = f"{len(tested)} pairs of cells (setting and task)"
    if not marked:
        verdict = f"Of {cells} none differs significantly"
    else:
        verdict = (
            f"Of {cells} {len(marked)} {'differs' if len(marked) == 1 else 'differ'} significantly"
            f", {_favours(marked, comparison)}"
        )
    return (
        f"{verdict} ({test_name(comparison)}, Holm's correction over the tasks, {100 * ALPHA:g} %)."
    )


def _favours(marked: list[Difference], comparison: Comparison) -> str:
    other = sum(d.only_other > d.only_baseline for d in marked)
    if other in (0, len(marked)):
        every = "all " if len(marked) > 1 else ""
        return f"{every}in favour of {comparison.other if other else comparison.baseline}"
    own = len(marked) - other
    return f"{other} in favour of {comparison.other} and {own} of {comparison.baseline}"


def _spelled(n: int) -> str:
    return _NUMBERS[n] if n < len(_NUMBERS) else str(n)


def _plural(word: str, n: int) -> str:
    return word if n == 1 else word + "s"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2g} million" if count >= 1e5 else labels.count(count)
