"""What the study's text is filled in with: tables and numbers, each from the stored runs alone."""

import statistics
from collections.abc import Callable, Sequence

from docs.study.choice import choose
from docs.study.claims import claims, summary
from docs.study.stored import Stored
from docs.study.study import ARMS, NOT_RUN, Study
from ratjax.needle.report import labels
from ratjax.needle.report.markdown import pipe_table
from ratjax.needle.report.plain import PLUS_MINUS, PlainTable, Text, plain_tables

# The bar that a task counts as learned with, and how many of the eight have to be.
LEARNED, LEARNED_TASKS = 95.0, 6


def tuning(study: Study) -> str:
    """Every tuning run, by backbone, the best dense score first."""
    runs = study.of("tuning")
    if not runs:
        return NOT_RUN
    rows = []
    for run in sorted(runs, key=lambda r: (r.arm, -statistics.fmean(r.dense().values()))):
        dense, loss = run.dense(), run.held_out_loss()
        rows.append(
            (
                Text(run.arm),
                Text(run.meta["differs"]),
                Text(labels.number(statistics.fmean(dense.values()))),
                Text(labels.DASH if loss is None else f"{loss:.3f}"),
                *(Text(labels.number(dense.get(task))) for task in _tasks(runs)),
                Text(f"{run.meta['compute']['gpu_seconds'] / 60:.1f}"),
            )
        )
    columns = ("Backbone", "Differs", "Dense mean", "Text loss")
    columns += (*map(labels.task, _tasks(runs)), "GPU minutes")
    return pipe_table(PlainTable("tuning", "", columns, tuple(rows), 2))


def chosen(study: Study) -> str:
    """The runs that the rule chooses."""
    found = {arm: choose(study.runs, arm) for arm in ARMS[:2]}
    said = [f"{arm}: `{run.meta['differs']}`" for arm, run in found.items() if run is not None]
    return "; ".join(said) or NOT_RUN


def _tasks(runs: Sequence[Stored]) -> list[str]:
    return sorted({t for run in runs for t in run.dense()}, key=labels.task_order)


def budget(study: Study) -> str:
    """How much tuning either backbone has had."""
    parts = []
    for arm in ARMS[:2]:
        runs = study.of("tuning", arm)
        steps = sorted({run.meta["training"]["steps"] for run in runs})
        of = f" of {' or '.join(map(labels.count, steps))} steps" if steps else ""
        parts.append(f"{arm}: {len(runs)} runs{of}")
    return "; ".join(parts)


def learned(study: Study) -> str:
    """Dense scores, averaged over seeds, and how many tasks are above the bar."""
    runs = study.of("main")
    if not runs:
        return NOT_RUN
    rows = []
    for arm in (a for a in ARMS if study.of("main", a)):
        own = study.of("main", arm)
        means = [statistics.fmean(run.dense()[task] for run in own) for task in _tasks(runs)]
        above = sum(mean >= LEARNED for mean in means)
        marked = [Text(labels.number(mean), bold=mean >= LEARNED) for mean in means]
        count = Text(f"{above} of {len(means)}", bold=above >= LEARNED_TASKS)
        rows.append((Text(arm), Text(str(len(own))), *marked, count))
    columns = ("Arm", "Seeds", *map(labels.task, _tasks(runs)), f"At least {LEARNED:g}")
    return pipe_table(PlainTable("learned", "", columns, tuple(rows), 1))


def scores(study: Study) -> str:
    """The report's tables of the main runs, all arms side by side."""
    group = study.group()
    if group is None:
        return NOT_RUN
    wanted = ("means", "tasks", "selectors")
    content = study.content(group, ())
    return _tables([t for t in plain_tables(content, group, ()) if t.key in wanted])


def same_data(study: Study) -> str:
    """Memory minus attention, each cell."""
    return _differences(study, "memory", "attention")


def same_compute(study: Study) -> str:
    """Memory minus the attention that has its compute."""
    return _differences(study, "memory", "attention_matched")


def published(study: Study) -> str:
    """The published gate and schedule, minus attention."""
    return _differences(study, "memory_published", "attention")


def published_compute(study: Study) -> str:
    """The same, minus the attention that has the other memory's compute."""
    return _differences(study, "memory_published", "attention_matched")


def _differences(study: Study, arm: str, against: str) -> str:
    found = study.comparison(arm, against)
    if found is None:
        return NOT_RUN
    content = study.content(found.group, (found,))
    tables = plain_tables(content, found.group, (found,))
    wanted = [t for t in tables if t.key == "means" or t.key.startswith("differences")]
    text = _tables(wanted)  # in which the other arm is called attention
    for column in ("minus attention", "| attention |"):
        text = text.replace(column, column.replace("attention", against))
    return text


def _tables(tables: Sequence[PlainTable]) -> str:
    parts = []
    for table in tables:
        parts += [f"**{table.title}**", pipe_table(table)]
        parts += [table.note.replace("*", "\\*")] if table.note else []
    return "\n\n".join(parts)


def hit_rates(study: Study) -> str:
    """Mean hit rate of the best heads and of all (runs keep 50, the model has fewer)."""
    runs = [run for run in study.of("main") if run.hits]
    if not runs:
        return NOT_RUN
    kinds = dict.fromkeys(
        (hit["method"], hit["budget"])
        for run in runs
        for hit in run.hits
        if hit["selector"] == "original"
    )
    rows = []
    for method, share in kinds:
        row = [Text(labels.method(method)), Text(share)]
        for arm in (a for a in ARMS if study.of("main", a)):
            tops = [
                ([rate for rate, *_ in hit["top"]], hit["best"])
                for run in study.of("main", arm)
                for hit in run.hits
                if (hit["method"], hit["budget"], hit["selector"]) == (method, share, "original")
            ]
            best = statistics.fmean(statistics.fmean(top[:count]) for top, count in tops)
            mean = statistics.fmean(statistics.fmean(top) for top, _ in tops)
            row.append(Text(f"{100 * best:.1f} / {100 * mean:.1f}"))
        rows.append(tuple(row))
    columns = ("Method", "Budget", *(f"{a}, best / all heads" for a in ARMS if study.of("main", a)))
    return pipe_table(PlainTable("hits", "", columns, tuple(rows), 2))


def text_loss(study: Study) -> str:
    """Loss on held-out text at the end of the main runs."""
    rows = []
    for arm in ARMS:
        losses = [run.held_out_loss() for run in study.of("main", arm)]
        losses = [loss for loss in losses if loss is not None]
        if losses:
            spread = f" {PLUS_MINUS} {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
            rows.append((Text(arm), Text(f"{statistics.fmean(losses):.3f}{spread}")))
    if not rows:
        return NOT_RUN
    return pipe_table(PlainTable("text", "", ("Arm", "Nats a token"), tuple(rows), 1))


def gates(study: Study) -> str:
    """How far back each layer's memory reaches at the end of the main runs; least and most."""
    rows = []
    for arm in ARMS:
        lengths = [run.meta["training"].get("gate_lengths") for run in study.of("main", arm)]
        layers = list(zip(*(found for found in lengths if found), strict=True))
        if layers:
            rows.append((Text(arm), *map(_with_range, layers)))
    if not rows:
        return NOT_RUN
    columns = ("Arm", *(f"Layer {number + 1}" for number in range(len(rows[0]) - 1)))
    return pipe_table(PlainTable("gates", "", columns, tuple(rows), 1))


def _with_range(values: Sequence[float]) -> Text:
    ends = f" ({labels.number(min(values))} to {labels.number(max(values))})"
    return Text(labels.number(statistics.fmean(values)), tail=ends)


def compute(study: Study) -> str:
    """What everything took."""
    if not study.runs:
        return NOT_RUN
    rows = []
    for kind in ("tuning", "main"):
        for arm in (a for a in ARMS if study.of(kind, a)):
            runs = study.of(kind, arm)
            spent = [run.meta["compute"] for run in runs]
            steps = sorted({run.meta["training"]["steps"] for run in runs})
            devices = sorted({run.meta["device"] for run in runs})
            rows.append(
                (
                    Text(kind),
                    Text(arm),
                    Text(", ".join(devices)),
                    Text(str(len(runs))),
                    Text(labels.DASH.join(map(labels.count, dict.fromkeys((steps[0], steps[-1]))))),
                    Text(f"{statistics.fmean(s['train_flops'] for s in spent):.3g}"),
                    Text(f"{statistics.fmean(s['gpu_seconds'] for s in spent) / 60:.1f}"),
                    Text(f"{sum(s['gpu_seconds'] for s in spent) / 3600:.2f}"),
                )
            )
    columns = ("List", "Arm", "Device", "Runs", "Steps", "FLOPs a training", "Minutes a run")
    return pipe_table(PlainTable("compute", "", (*columns, "GPU hours"), tuple(rows), 3))


def gpu_hours(study: Study) -> str:
    """In all."""
    hours = sum(run.meta["compute"]["gpu_seconds"] for run in study.runs) / 3600
    return f"{hours:.1f}" if study.runs else NOT_RUN


BLOCKS: dict[str, Callable[[Study], str]] = {
    "summary": summary,
    "budget": budget,
    "tuning": tuning,
    "chosen": chosen,
    "learned": learned,
    "scores": scores,
    "same_data": same_data,
    "same_compute": same_compute,
    "published": published,
    "published_compute": published_compute,
    "hit_rates": hit_rates,
    "gates": gates,
    "text_loss": text_loss,
    "claims": claims,
    "compute": compute,
    "gpu_hours": gpu_hours,
}
