"""What a setting costs beside what it scores."""

from collections.abc import Sequence
from statistics import fmean

from ratjax.needle.report import labels
from ratjax.needle.report.charts.front import FrontLine, front_chart
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Cell, Group
from ratjax.needle.report.markup import Child, Markup, el
from ratjax.needle.report.records import COST_FIELDS, Setting
from ratjax.needle.report.sections.common import (
    group_heading,
    head,
    note,
    number_cell,
    scrolling,
    section,
)

_TITLES = {
    "kv_read_fraction_prefill": "Read in prefill",
    "kv_read_fraction_decode": "Read in decoding",
    "kv_bytes_per_token": "Read a token, MiB",
    "prefill_flops": "Prefill, TFLOP",
    "seconds_per_prompt": "Seconds a prompt",
    "prefill_seconds": "Prefill, s",
    "decode_seconds": "Decoding, s",
    "tokens_per_s": "Tokens/s",
    "cache_bytes": "Cache, MiB",
}

_UNITS = {"cache_bytes": 2**20, "kv_bytes_per_token": 2**20, "prefill_flops": 1e12}
_SPEEDS = {"seconds_per_prompt", "tokens_per_s"}


def cost(content: Content) -> Markup:
    parts: list[Child] = []
    for group in content.groups:
        parts += [group_heading(content, group), _fronts(group), _table(group)]
    text = (
        "Means over the tasks. Read: share of the visible keys and values that were read, in the "
        "phase that the method makes sparse (MoBA: prefill; Quest and SnapKV: decoding)."
    )
    if any(r.cost(field) for r in content.results for field in _SPEEDS):
        text += " Speed: times as fast as the same backbone read densely, on the same device."
    return section("cost", "Cost beside score", *parts, note(text))


def _fronts(group: Group) -> Markup | None:
    charts = []
    for backbone in group.backbones:
        lines = _front_lines(group, backbone)
        if not lines:
            continue
        dense = group.average(backbone, group.dense_setting) if group.dense_setting else None
        chart = front_chart(backbone, lines, None if dense is None else dense.mean)
        charts.append(el("figure", el("figcaption", el("b", backbone)), chart, class_="panel"))
    return el("div", *charts, class_="panels wide") if charts else None


def _front_lines(group: Group, backbone: str) -> list[FrontLine]:
    points: dict[str, list[tuple[float, float]]] = {}
    for setting in group.main_settings:
        score = group.average(backbone, setting)
        share = _mean(group.of_setting(backbone, setting), "kv_read_fraction")
        if score is None or not share:
            continue
        name = group.method_name(setting).replace(", blocks of ", ", B=")
        points.setdefault(name, []).append((share, score.mean))
    return [FrontLine(name, tuple(sorted(found))) for name, found in points.items()]


def _table(group: Group) -> Markup:
    cells = list(group.cells.values())
    fields = [f for f in COST_FIELDS if any(cell.cost(f) is not None for cell in cells)]
    columns: list[Child] = ["Setting", "Backbone", "Mean score", "Read"]
    columns += [_TITLES[field] for field in fields]
    columns += ["Speed"] if _SPEEDS & set(fields) else []
    rows = [
        _row(group, backbone, setting, fields)
        for setting in group.settings
        for backbone in group.backbones
        if group.of_setting(backbone, setting)
    ]
    return scrolling(el("table", head(columns), el("tbody", *rows), class_="cost"), "Cost")


def _row(group: Group, backbone: str, setting: Setting, fields: Sequence[str]) -> Markup:
    cells = group.of_setting(backbone, setting)
    score = group.average(backbone, setting)
    parts: list[Child] = [
        el("th", group.setting_name(setting), scope="row"),
        el("td", backbone),
        number_cell(labels.number(score.mean if score else None)),
        number_cell(labels.percent(_mean(cells, "kv_read_fraction"))),
    ]
    parts += [number_cell(_shown(field, _mean(cells, field))) for field in fields]
    if _SPEEDS & set(fields):
        dense = group.of_setting(backbone, group.dense_setting) if group.dense_setting else []
        ratio = _speed(cells, dense)
        parts.append(number_cell(labels.DASH if ratio is None else f"{ratio:.2f}"))
    return el("tr", *parts, class_="reference" if setting.is_dense else None)


def _mean(cells: Sequence[Cell], field: str) -> float | None:
    values = [value for cell in cells if (value := cell.cost(field)) is not None]
    return fmean(values) if values else None


def _speed(cells: Sequence[Cell], dense: Sequence[Cell]) -> float | None:
    """How many times faster than dense: by tokens a second, else by seconds a prompt."""
    own, reference = (_mean(side, "tokens_per_s") for side in (cells, dense))
    if own and reference:
        return own / reference
    own, reference = (_mean(side, "seconds_per_prompt") for side in (cells, dense))
    return reference / own if own and reference else None


def _shown(field: str, value: float | None) -> str:
    if value is None:
        return labels.DASH
    if field.startswith("kv_read"):
        return labels.percent(value)
    if field in _UNITS:
        return f"{value / _UNITS[field]:.3g}"
    return labels.count(round(value)) if value >= 1000 else f"{value:.3g}"
