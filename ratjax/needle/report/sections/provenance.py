"""How to get these numbers again."""

import json
from collections.abc import Mapping
from typing import Any

from ratjax.needle.report.compare import DRAWS
from ratjax.needle.report.content import Content
from ratjax.needle.report.markup import Child, Markup, el
from ratjax.needle.report.sections.common import note, section

# Shown in words elsewhere on the page.
_ELSEWHERE = {"description", "config"}


def provenance(content: Content) -> Markup:
    entries: list[tuple[str, Child]] = [
        (field, _value(value)) for field, value in content.meta.items() if field not in _ELSEWHERE
    ]
    entries.append(("training seeds", _seeds({r.train_seed for r in content.results})))
    selector_seeds = {r.selector_seed for r in content.results if r.selector_seed is not None}
    if selector_seeds:
        entries.append(("selector seeds", _seeds(selector_seeds)))
    if content.command:
        entries.append(("this report", el("code", content.command)))
    listing = el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in entries))
    config = content.meta.get("config")
    return section(
        "provenance",
        "How these numbers came about",
        listing,
        _folded("Configuration", config) if config is not None else None,
        note(
            f"Intervals of differences: with one seed {DRAWS} paired bootstrap draws (generator "
            "seed 0), with several a model with seeds and prompts as random effects. The rows "
            "behind this page are results.json, every difference and its test comparisons.json, "
            "the answers predictions.jsonl (and what was asked prompts.jsonl), all beside it."
        ),
    )


def _seeds(seeds: set[int | None]) -> str:
    return ", ".join("not stated" if s is None else str(s) for s in sorted(seeds, key=str))


def _value(value: Any) -> Child:
    if isinstance(value, Mapping) and all(
        not isinstance(v, list | Mapping) for v in value.values()
    ):
        return ", ".join(f"{name} {v}" for name, v in value.items())
    if isinstance(value, list | Mapping):
        return _folded("show", value)
    return el("code", value) if isinstance(value, str) else str(value)


def _folded(title: str, value: Any) -> Markup:
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return el("details", el("summary", title), el("pre", text, tabindex="0"))
