"""The page as text: parts in their order, nothing from outside, small enough."""

import html.parser
import json
import re

import pytest

from ratjax.needle import report
from ratjax.needle.report.content import collect
from ratjax.needle.report.page import page
from ratjax.needle.report.sections import answers
from tests.needle_report import synthetic

SECTIONS = [
    "headline",
    "curves",
    "tables",
    "differences",
    "cost",
    "cells",
    "training",
    "failures",
    "answers",
    "provenance",
]


class _Reader(html.parser.HTMLParser):
    """Checks that elements nest, and collects what tests ask for."""

    def __init__(self):
        super().__init__()
        self.open, self.sections, self.ids, self.addresses = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"])
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.addresses += [attributes[n] for n in ("src", "href", "srcset") if n in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _read(text):
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    return reader


def _text_of(built):
    return (built / "index.html").read_text(encoding="utf-8")


def _data(text):
    found = re.search(
        r'<script type="application/json" id="answers-data">(.*?)</script>', text, re.S
    )
    return json.loads(found.group(1))


def _section(text, name):
    return re.search(rf'<section id="{name}".*?</section>', text, re.S).group()


def test_sections_in_their_order(built):
    assert _read(_text_of(built)).sections == SECTIONS


def test_nothing_comes_from_outside(built):
    text = _text_of(built)
    reader = _read(text)
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text


def test_every_cell_is_a_row_and_every_task_a_panel(built):
    text = _text_of(built)
    assert _section(text, "cells").count("data-task=") == 160
    # Twenty settings and backbones, eight tasks and their mean.
    assert _section(text, "tables").count('<td class="num"') == 20 * 9
    # Three methods: a mean and eight tasks each; fronts by reads and by speed, of two backbones;
    # two phases of loss.
    assert text.count('<svg class="chart"') == 3 * 9 + 2 * 2 + 2


def test_answers_share_their_prompts(built):
    data = _data(_text_of(built))
    assert len(data["cells"]) == 160
    assert all(len(found) == 12 for *_, found in data["cells"])
    assert len(data["prompts"]) == 8 * 12
    prompt, gold = data["prompts"][0]
    assert gold[0] in prompt


def test_prompts_cannot_break_out_of_the_page(tmp_path):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))
    folder = synthetic.write_run(
        tmp_path / "r", run="</script><b>", chosen=chosen, samples=2, metrics=False
    )
    path = folder / "prompts.jsonl"
    lines = [json.loads(s) for s in path.read_text().splitlines()]
    for line in lines:
        line["input"] = "</script><script>alert(1)</script><!-- \u2028"
    synthetic.write_lines(path, lines)
    text = page(collect([folder]))
    assert "alert(1)</script>" not in text and "<b>" not in text.partition("</header>")[0]
    assert _data(text)["prompts"][0][0] == "</script><script>alert(1)</script><!-- \u2028"
    assert _read(text).sections[-1] == "provenance"


def test_few_and_shortened_answers_where_prompts_are_long(content, monkeypatch):
    monkeypatch.setattr(answers, "MOST_BYTES", 90_000)
    text = answers.answers(content)
    assert len(_data(text)["cells"][0][4]) < 12
    # Below what one whole prompt a cell takes, above what shortened ones take.
    least = len(answers._text(content, 1, False).encode())
    monkeypatch.setattr(answers, "_CAPS", (1,))
    monkeypatch.setattr(answers, "MOST_BYTES", least - 1000)
    monkeypatch.setattr(answers, "_AROUND", 30)
    monkeypatch.setattr(answers, "_TAIL", 60)
    text = answers.answers(content)
    assert "Prompts are shortened" in text
    for prompt, gold in _data(text)["prompts"]:
        assert all(answer in prompt for answer in gold)
        assert prompt.endswith("mentioned in the provided text?") and "[...]" in prompt


def test_optional_parts_are_left_out(tmp_path):
    folder = synthetic.write_run(
        tmp_path / "r",
        backbones=("memory",),
        chosen=synthetic.settings()[:1],
        samples=3,
        predictions=False,
        metrics=False,
        costs=False,
        meta={"parameters": None, "description": None, "config": None},
    )
    assert _read(page(collect([folder]))).sections == [
        *("headline", "tables", "cost", "cells", "provenance")
    ]


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Two context lengths, two training seeds, random selectors, two block sizes, a third
    backbone, a budget and a task that are missing."""
    root = tmp_path_factory.mktemp("varied")
    selectors = [("original", None), ("random", 0), ("random", 1)]
    runs = []
    for length in (256, 512):
        chosen = synthetic.settings(length, ("quest", "snapkv"), ("1/4", "1/8"), selectors)
        chosen += synthetic.settings(length, ("quest",), ("1/64",), block_size=4)[1:]
        for seed in (0, 1):
            backbones = ("attention", "memory") if length == 256 else ("attention", "memory", "x")
            runs.append(
                synthetic.write_run(
                    root / f"{length}-{seed}",
                    run=f"study-{seed}",
                    backbones=backbones,
                    tasks=synthetic.TASKS[:3],
                    samples=4,
                    context_length=length,
                    train_seed=seed,
                    chosen=chosen,
                    metrics=length == 256,
                )
            )
    path = runs[0] / "results.json"
    document = json.loads(path.read_text())
    document["results"] = [
        row
        for row in document["results"]
        if not (row["method"] == "snapkv" and row["budget"] == "1/8")
        and not (row["method"] == "quest" and row["task"] == synthetic.TASKS[1] and row["k"] == 4)
    ]
    path.write_text(json.dumps(document))
    (runs[0] / "predictions.jsonl").unlink()
    report.build(runs, root / "out")
    return root / "out"


def test_a_varied_report_holds_together(varied):
    text = _text_of(varied)
    assert _read(text).sections == [*SECTIONS[:4], "selectors", *SECTIONS[4:]]
    assert "Quest, blocks of 4" in text and "random selector" in text
    assert "mean of two training seeds" in text
    assert text.count("<h3>256 tokens</h3>") == 6
    # The third backbone has a colour, a marker and a comparison of its own.
    assert "x minus attention" in text and "b2" in text


def test_paper_columns_where_the_run_repeats_it(tmp_path):
    folder = synthetic.write_run(
        tmp_path / "r",
        context_length=4096,
        chosen=synthetic.settings(4096, ("quest",), ("1/16",), block_size=64),
        samples=10,
        metrics=False,
        meta={"paper_checkpoints": "olmo2_7b"},
    )
    text = page(collect([folder]))
    assert "minus paper" in text and "Paper, RAT+ 7B" not in text
    row = re.search(
        r'data-backbone="memory" data-method="quest" data-task="niah_multikey_2">(.*?)</tr>', text
    )
    document = json.loads((folder / "results.json").read_text())
    (score,) = [
        r["score_strict"]
        for r in document["results"]
        if (r["backbone"], r["method"], r["task"]) == ("memory", "quest", "niah_multikey_2")
    ]
    assert ">98.6<" in row.group(1)
    shown = f"{score - 98.6:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert f">{shown}<" in row.group(1)
