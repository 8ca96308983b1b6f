"""What a setting costs beside what it scores."""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from ratjax.needle.report import labels
from ratjax.needle.report.charts.front import FrontLine, front_chart, reads, speeds
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Cell, Group
from ratjax.needle.report.markup import Child, Markup, el, join
from ratjax.needle.report.records import COST_FIELDS, Setting
from ratjax.needle.report.sections.common import (
    group_heading,
    note,
    number_cell,
    scrolling,
    section,
    sortable_head,
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

Value = Callable[[Group, str, Setting], float | None]


def cost(content: Content) -> Markup:
    parts: list[Child] = []
    for group in content.groups:
        parts += [group_heading(content, group), _fronts(group), _table(group)]
    text = (
        "Means over the tasks. Read: share of the visible keys and values that were read, in the "
        "phase that the method makes sparse (MoBA: prefill; Quest and SnapKV: decoding)."
    )
    if any(r.cost(field) for r in content.results for field in _SPEEDS):
        text += (
            " Decoding, times dense: tokens decoded a second over those of the same backbone read "
            "densely, on the same device; prompts likewise, prefill counted in."
        )
    return section("cost", "Cost beside score", *parts, note(text))


def _fronts(group: Group) -> Markup | None:
    parts = []
    for axis, value in ((reads, _read), (speeds, _speed)):
        charts = []
        for backbone in group.backbones:
            lines = _front_lines(group, backbone, value)
            if not lines:
                continue
            dense = group.average(backbone, group.dense_setting) if group.dense_setting else None
            mean = None if dense is None else dense.mean
            below = axis(lines)
            chart = front_chart(backbone, below, lines, mean)
            caption = el("figcaption", el("b", backbone), f" by {below.text}")
            charts.append(el("figure", caption, chart, class_="panel"))
        if charts:
            parts.append(el("div", *charts, class_="panels wide"))
    return join(parts) if parts else None


def _front_lines(group: Group, backbone: str, value: Value) -> list[FrontLine]:
    points: dict[str, list[tuple[float, float]]] = {}
    for setting in group.main_settings:
        score = group.average(backbone, setting)
        found = value(group, backbone, setting)
        if score is None or not found:
            continue
        name = group.method_name(setting).replace(", blocks of ", ", B=")
        points.setdefault(name, []).append((found, score.mean))
    return [FrontLine(name, tuple(sorted(found))) for name, found in points.items()]


def _read(group: Group, backbone: str, setting: Setting) -> float | None:
    return _mean(group.of_setting(backbone, setting), "kv_read_fraction")


def _speed(group: Group, backbone: str, setting: Setting) -> float | None:
    """Tokens decoded a second over those of the same backbone read densely."""
    own, reference = _beside_dense(group, backbone, setting, "tokens_per_s")
    return own / reference if own and reference else None


def _prompt_speed(group: Group, backbone: str, setting: Setting) -> float | None:
    """Seconds a prompt takes densely over those it takes here, prefill and answer together."""
    own, reference = _beside_dense(group, backbone, setting, "seconds_per_prompt")
    return reference / own if own and reference else None


def _beside_dense(
    group: Group, backbone: str, setting: Setting, field: str
) -> tuple[float | None, float | None]:
    dense = group.dense_setting
    own = _mean(group.of_setting(backbone, setting), field)
    return own, None if dense is None else _mean(group.of_setting(backbone, dense), field)


# A measured field that must be there, the column's title, and the ratio to dense.
_RATIOS: tuple[tuple[str, str, Value], ...] = (
    ("tokens_per_s", "Decoding, times dense", _speed),
    ("seconds_per_prompt", "Prompts, times dense", _prompt_speed),
)


def cost_columns(group: Group) -> list[str]:
    """What stands beside setting and backbone: score, shares read, costs, and speeds."""
    fields, ratios = _present(group)
    titles = [*(_TITLES[field] for field in fields), *(name for name, _ in ratios)]
    return ["Mean score", "Read", *titles]


def cost_rows(group: Group) -> Iterator[tuple[str, ...]]:
    """Setting, backbone, and the columns' values as text, row by row."""
    fields, ratios = _present(group)
    for setting in group.settings:
        for backbone in group.backbones:
            cells = group.of_setting(backbone, setting)
            if not cells:
                continue
            score = group.average(backbone, setting)
            found = [of(group, backbone, setting) for _, of in ratios]
            yield (
                group.setting_name(setting),
                backbone,
                labels.number(score.mean if score else None),
                labels.percent(_mean(cells, "kv_read_fraction")),
                *(_shown(field, _mean(cells, field)) for field in fields),
                *(labels.DASH if ratio is None else f"{ratio:.2f}" for ratio in found),
            )


def _present(group: Group) -> tuple[list[str], list[tuple[str, Value]]]:
    """The costs that any cell has, and the speeds that follow from them."""
    cells = list(group.cells.values())
    fields = [f for f in COST_FIELDS if any(cell.cost(f) is not None for cell in cells)]
    return fields, [(name, of) for field, name, of in _RATIOS if field in fields]


def _table(group: Group) -> Markup:
    rows = []
    dense = labels.method("dense")
    for place, (setting, backbone, *values) in enumerate(cost_rows(group)):
        name = el("th", setting, scope="row", data_value=place)
        cells = (number_cell(value) for value in values)
        reference = "reference" if setting == dense else None
        rows.append(el("tr", name, el("td", backbone), *cells, class_=reference))
    head = sortable_head(["Setting", "Backbone"], cost_columns(group))
    return scrolling(el("table", head, el("tbody", *rows), class_="sortable cost"), "Cost")


def _mean(cells: Sequence[Cell], field: str) -> float | None:
    values = [value for cell in cells if (value := cell.cost(field)) is not None]
    return fmean(values) if values else None


def _shown(field: str, value: float | None) -> str:
    if value is None:
        return labels.DASH
    if field.startswith("kv_read"):
        return labels.percent(value)
    if field in _UNITS:
        return f"{value / _UNITS[field]:.3g}"
    return labels.count(round(value)) if value >= 1000 else f"{value:.3g}"
