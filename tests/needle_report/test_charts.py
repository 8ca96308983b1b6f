"""Drawings: coordinates, ticks, labels that do not touch."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ratjax.needle.report.charts.axes import Frame, Scale, marker, nice_ticks
from ratjax.needle.report.charts.budget import budget_chart
from ratjax.needle.report.charts.front import FrontLine, front_chart, reads, speeds, spread
from ratjax.needle.report.charts.loss import loss_chart
from ratjax.needle.report.curves import Curve, CurvePoint, Panel
from ratjax.needle.report.markup import Markup, el, escape
from ratjax.needle.report.records import Setting
from ratjax.needle.report.training import LossCurve
from ratjax.needle.statistics import Estimate

PLACES = {"attention": 0, "memory": 1}


def _curve(backbone, scores, selector="original", checkpoints=None):
    points = [
        CurvePoint(Setting("quest", 16, 4, budget, selector), Estimate(m, m - 5.0, m + 5.0))
        for budget, m in scores.items()
    ]
    return Curve(backbone, selector, checkpoints, tuple(points))


def _parse(svg):
    return ElementTree.fromstring(svg)


def _of_class(root, name):
    return [node for node in root.iter() if name in (node.get("class") or "").split()]


def test_scale_maps_ends_and_degenerate_ranges():
    scale = Scale(0.0, 100.0, 200.0, 0.0)
    assert (scale(0), scale(50), scale(100)) == (200, 100, 0)
    assert Scale(3.0, 3.0, 0.0, 10.0)(3) == 5


def test_curves_stand_where_their_scores_are():
    panel = Panel(
        "S-1",
        "",
        (
            _curve("attention", {"1/16": 20.0, "1/4": 60.0}),
            _curve("memory", {"1/16": 40.0, "1/4": 80.0}),
        ),
        (("attention", Estimate(95.0, 90.0, 100.0)),),
    )
    root = _parse(budget_chart(panel, ["1/16", "1/8", "1/4"], PLACES))
    lines = [
        [tuple(map(float, spot.split(","))) for spot in node.get("points").split()]
        for node in _of_class(root, "curve")
    ]
    (a_low, a_high), (m_low, m_high) = lines
    # Lower scores lie lower, by equal steps for equal differences; budgets ascend to the right.
    assert a_low[1] - m_low[1] == pytest.approx(m_low[1] - a_high[1], abs=0.2)
    assert a_high[1] - m_high[1] == pytest.approx(a_low[1] - m_low[1], abs=0.2)
    assert a_low[0] == m_low[0] < a_high[0] == m_high[0]
    (dense,) = _of_class(root, "dense")
    assert float(dense.get("y1")) < m_high[1]
    assert [t.text for t in root.iter() if t.tag == "text"][-3:] == ["1/16", "1/8", "1/4"]
    # Backbones differ by marker as well as colour.
    assert len(_of_class(root, "ring")) == 2
    assert [node.tag for node in _of_class(root, "b1") if "mark" in node.get("class")] == [
        "rect"
    ] * 2


def test_bands_become_whiskers_at_a_single_budget():
    panel = Panel("S-1", "", (_curve("memory", {"1/64": 50.0}),), ())
    root = _parse(budget_chart(panel, ["1/64"], PLACES))
    assert len(_of_class(root, "whisker")) == 1 and not _of_class(root, "band")


def test_paper_and_random_curves_are_told_apart():
    panel = Panel(
        "S-1",
        "",
        (
            _curve("memory", {"1/8": 50.0, "1/4": 60.0}),
            _curve("memory", {"1/8": 30.0, "1/4": 40.0}, selector="random"),
            _curve("memory", {"1/8": 90.0, "1/4": 99.0}, checkpoints="olmo2_7b"),
        ),
        (),
    )
    root = _parse(budget_chart(panel, ["1/8", "1/4"], PLACES))
    assert len(_of_class(root, "paper-olmo2_7b")) == 1
    (dashed,) = [n for n in _of_class(root, "curve") if "dashed" in n.get("class")]
    assert "b1" in dashed.get("class")
    tips = [title.text for title in root.iter("title")]
    assert "memory: 60.0 [55.0, 65.0]" in tips[1]
    assert "memory, random selector: 40.0" in tips[1]
    assert "paper, OLMo2-7B: memory 99.0" in tips[1]
    # The paper's values are no part of what is read out as ours.
    assert "99" not in root.get("aria-label")


@pytest.mark.parametrize("position", range(5))
def test_markers_have_a_shape_each(position):
    assert _parse(marker(10.0, 10.0, position, "b0")).tag in ("circle", "rect", "polygon")


def test_ticks_are_round_and_inside():
    assert nice_ticks(0.0, 5.3) == [0, 2, 4]
    assert nice_ticks(1.0, 700.0, 4) == [200, 400, 600]
    assert nice_ticks(3.0, 3.0) == [3.0]
    for low, high in np.random.default_rng(0).uniform(0, 50, (20, 2)):
        if high > low:
            ticks = nice_ticks(float(low), float(high))
            assert 1 <= len(ticks) <= 6 and low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9


def test_spread_labels_keep_their_distance_and_order():
    rng = np.random.default_rng(1)
    for _ in range(50):
        wanted = rng.uniform(0, 60, size=6).tolist()
        placed = spread(wanted, 12.0)
        ordered = sorted(placed)
        assert min(np.diff(ordered)) >= 12 - 1e-9
        assert np.argsort(wanted).tolist() == np.argsort(placed).tolist()
    assert spread([10.0, 100.0], 12.0) == [10.0, 100.0]
    assert spread([50.0, 50.0], 12.0) == [44.0, 56.0]


def test_front_names_every_method():
    lines = [FrontLine("Quest", ((0.0625, 40.0), (0.25, 70.0))), FrontLine("MoBA", ((0.3, 71.0),))]
    root = _parse(front_chart("memory", reads(lines), lines, 98.0))
    texts = [node.text for node in root.iter("text")]
    assert {"Quest", "MoBA", "dense", "1/16", "1"} <= set(texts)


def test_fronts_of_speed_have_their_names_behind_the_fastest():
    lines = [FrontLine("Quest", ((1.4, 70.0), (2.7, 40.0))), FrontLine("MoBA", ((0.9, 71.0),))]
    axis = speeds(lines)
    assert axis.ticks == [(-1.0, "1/2"), (0.0, "1"), (1.0, "2"), (2.0, "4")]
    root = _parse(front_chart("memory", axis, lines, None))
    names = {n.text: float(n.get("x")) for n in root.iter("text") if n.get("class") == "name"}
    fastest = max(float(node.get("cx")) for node in _of_class(root, "ring"))
    assert names["Quest"] == names["MoBA"] > fastest


def test_loss_chart_of_one_step():
    curve = LossCurve("train", "memory", (10.0,), (2.5,), 1)
    assert "from 2.5 at step 10" in _parse(loss_chart([curve], PLACES)).get("aria-label")


def test_text_is_escaped_and_markup_is_not():
    assert escape('<b> & "q"') == "&lt;b&gt; &amp; &quot;q&quot;"
    assert el("p", Markup("<b>x</b>"), "<i>", title='"') == (
        '<p title="&quot;"><b>x</b>&lt;i&gt;</p>'
    )
    assert el("input", checked=True, disabled=False, id=None) == "<input checked>"
    assert el("label", "a", for_="x", aria_label="y") == '<label for="x" aria-label="y">a</label>'


def test_frame_keeps_its_margins():
    frame = Frame.of(200.0, 100.0, (0.0, 1.0), (0.0, 1.0), (10.0, 20.0, 30.0, 40.0))
    assert (frame.x(0), frame.x(1), frame.y(0), frame.y(1)) == (40, 180, 70, 10)
    assert re.search(r'viewBox="0 0 200 100"', frame.svg(Markup(""), "d"))
