"""The page in a real browser: silent console, no network, every width, keyboard, no scripts."""

import itertools

import pytest

COUNT = "document.querySelector('#{} .count').textContent"
SECTIONS = "[...document.querySelectorAll('main section')].map(s => s.id)"


@pytest.mark.parametrize(
    "width, scheme", list(itertools.product((1280, 768, 390), ("light", "dark")))
)
def test_page_loads_silently_alone_and_fits(browser, built, width, scheme):
    browser.open(built / "index.html", width, 900, prefers_color_scheme=scheme)
    assert browser.problems() == []
    assert browser.requests() == [(built / "index.html").resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert len(browser.evaluate(SECTIONS)) == 10
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(v) for v in background.strip("rgb()").split(",")[:3]) / 3
    assert (lightness < 80) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser, built, scheme):
    browser.open(built / "index.html", prefers_color_scheme=scheme)
    worst = browser.evaluate(_WORST_CONTRAST)
    # WCAG AA for text of normal size.
    assert worst[0] >= 4.5, worst


# The lowest contrast between the text of elements and what lies behind them.
_WORST_CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  function behind(node) {
    if (!node) return [255, 255, 255];
    const own = parse(getComputedStyle(node).backgroundColor);
    if (own.length < 4) return own.length ? own : behind(node.parentElement);
    return own[3] === 0 ? behind(node.parentElement) : over(own, behind(node.parentElement));
  }
  let worst = [99, ""];
  for (const node of document.querySelectorAll(
    "p, td, th, td *, h1, h2, li, label, a, text, dt, dd, code")) {
    if (!node.textContent.trim() || !node.getClientRects().length) continue;
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
    const style = getComputedStyle(node);
    const ink = parse(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink.slice(0, 3)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${node.tagName} ${node.textContent.slice(0, 30)}`];
  }
  return worst;
})()"""


def test_tabs_switch_by_keyboard(browser, built):
    browser.open(built / "index.html")
    shown = (
        "[...document.querySelectorAll('.tabpanel')]"
        ".filter(p => p.offsetHeight).map(p => p.querySelector('h4').textContent)"
    )
    assert browser.evaluate(shown) == ["Quest, task by task"]
    assert browser.evaluate("document.querySelectorAll('.tabpanel').length") == 3
    browser.evaluate("document.querySelector('.tabs input').focus()")
    browser.press("ArrowRight")
    assert browser.evaluate(shown) == ["MoBA, task by task"]


def test_the_papers_numbers_can_be_changed_and_hidden(browser, built):
    browser.open(built / "index.html")
    shown = (
        "[...new Set([...document.querySelectorAll('.paper')]"
        ".filter(p => getComputedStyle(p).display !== 'none').map(p => p.classList[1]))]"
    )
    assert browser.evaluate(shown) == ["paper-olmo2_7b"]
    browser.evaluate("document.getElementById('show-ratplus_7b_100bt').click()")
    assert browser.evaluate(shown) == ["paper-ratplus_7b_100bt"]
    browser.evaluate("document.getElementById('show-none').click()")
    assert browser.evaluate(shown) == []


def test_cells_sort_and_filter(browser, built):
    browser.open(built / "index.html")
    column = (
        "[...document.querySelectorAll('#cells-table tbody tr:not([hidden])')]"
        ".map(r => r.cells[{}].textContent)"
    )
    heading = "document.querySelectorAll('#cells-table th button')[{}]"
    browser.evaluate(heading.format(4) + ".click()")
    strict = [float(text.rstrip("*")) for text in browser.evaluate(column.format(4))]
    assert strict == sorted(strict) and len(strict) == 160
    browser.evaluate(heading.format(4) + ".focus()")
    browser.press("Enter")
    down = [float(text.rstrip("*")) for text in browser.evaluate(column.format(4))]
    assert down == strict[::-1]
    assert browser.evaluate(heading.format(4) + ".parentElement.ariaSort") == "descending"
    # By size, not by spelling.
    browser.evaluate(heading.format(1) + ".click()")
    budgets = browser.evaluate(column.format(1))
    assert list(dict.fromkeys(budgets)) == ["1/16", "1/8", "1/4", "1"]
    # Rows without a paper's number stay last both ways.
    for _ in range(2):
        browser.evaluate(heading.format(10) + ".click()")
        paper = browser.evaluate(column.format(10))
        assert paper[-16:] == [""] * 16 and "" not in paper[:-16]
    for name, value in (("backbone", "memory"), ("method", "moba"), ("task", "niah_single_2")):
        browser.evaluate(
            f"(() => {{ const s = document.querySelector('#cells [data-filter={name}]');"
            f" s.value = '{value}'; s.dispatchEvent(new Event('change')) }})()"
        )
    assert sorted(browser.evaluate(column.format(1))) == ["1/16", "1/4", "1/8"]
    assert browser.evaluate(COUNT.format("cells")) == "3 of 160 rows"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_with_everything_fits(browser, paper_page, width):
    """The paper's tables, selectors, hit rates, fronts and failures: nothing sticks out, every
    table that is wider than the window scrolls by itself."""
    browser.open(paper_page, width, 900)
    assert browser.problems() == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    shown = browser.evaluate(SECTIONS)
    assert {"tables", "selectors", "hits", "cost", "failures"} <= set(shown)
    outside = (
        "[...document.querySelectorAll('main *')].filter(n => !n.closest('.scroll, pre, svg'))"
        ".filter(n => n.getBoundingClientRect().right > innerWidth + 1).map(n => n.outerHTML)"
    )
    assert browser.evaluate(outside) == []
    # What scrolls sideways still shows its first column and a number.
    for name in ("tables", "selectors", "cost"):
        edge = f"document.querySelector('#{name} td.num').getBoundingClientRect().right"
        assert browser.evaluate(edge) <= width


def test_the_papers_tables_sort_by_our_scores(browser, paper_page):
    browser.open(paper_page)
    heading = "document.querySelectorAll('#tables th button')[{}]"
    column = "[...document.querySelectorAll('#tables tbody tr')].map(r => r.cells[{}].textContent)"
    browser.evaluate(heading.format(3) + ".click()")
    ours = [float(text.split(".")[0]) for text in browser.evaluate(column.format(3))]
    assert ours == sorted(ours) and len(set(ours)) > 3
    # Settings sort in the report's order, not by their spelling.
    browser.evaluate(heading.format(0) + ".click()")
    names = list(dict.fromkeys(browser.evaluate(column.format(0))))
    assert names[:3] == ["Dense", "Quest 1/4", "Quest 1/8"]


def test_failures_filter(browser, paper_page):
    browser.open(paper_page)
    everything = int(browser.evaluate(COUNT.format("failures")).split()[0])
    for name, value in (("backbone", "memory"), ("method", "quest"), ("task", "niah_multiquery")):
        browser.evaluate(
            f"(() => {{ const s = document.querySelector('#failures [data-filter={name}]');"
            f" s.value = '{value}'; s.dispatchEvent(new Event('change')) }})()"
        )
    shown = browser.evaluate(COUNT.format("failures"))
    assert shown.endswith(f"of {everything} rows") and 0 < int(shown.split()[0]) < 20
    row = "document.querySelector('#failures tbody tr:not([hidden])').cells[{}].textContent"
    assert browser.evaluate(row.format(1)) == "MQ"
    assert browser.evaluate(row.format(4)).endswith("mentioned in the provided text?")
    assert "\u2717" in browser.evaluate(row.format(6))
    # The table of cells has filters of its own.
    assert "of" not in browser.evaluate(COUNT.format("cells"))


def _choose(browser, name, value):
    browser.evaluate(
        f"(() => {{ const s = document.querySelector('#answers-view [data-name={name}]');"
        f" s.value = '{value}'; s.dispatchEvent(new Event('change')) }})()"
    )


def test_answers_show_prompt_needle_and_verdicts(browser, built):
    browser.open(built / "index.html")
    first = (
        "[...document.querySelectorAll('#answers-view [data-name]')]"
        ".map(s => s.selectedOptions[0].textContent)"
    )
    assert browser.evaluate(first) == [
        "Quest 1/16",
        "S-1: one needle in noise",
        "all",
        "all prompts",
    ]
    said = "[...document.querySelectorAll('.said h4')].map(h => h.textContent)"
    names = [text.split(":")[0] for text in browser.evaluate(said)]
    assert names == ["attention", "memory"]
    marked = browser.evaluate("document.querySelector('.prompt mark').textContent")
    assert marked.startswith("One of the special magic numbers for") and marked.endswith(".")
    gold = browser.evaluate("document.querySelector('.prompt mark b').textContent")
    assert gold in marked and gold.isdigit()
    assert gold in browser.evaluate("document.querySelector('.said li').textContent")
    # Four needles, four marks, four verdicts a backbone.
    _choose(browser, "task", 7)
    assert browser.evaluate("document.querySelectorAll('.prompt mark').length") == 4
    assert browser.evaluate("document.querySelectorAll('.said li').length") == 8
    verdicts = browser.evaluate(
        "[...document.querySelectorAll('.said')].map(s => [s.querySelector('h4').textContent,"
        " s.querySelectorAll('li.yes').length])"
    )
    assert all(f": {25 * right} of 100" in title for title, right in verdicts)


def test_answers_filter_to_one_backbone_and_to_differences(browser, built):
    browser.open(built / "index.html")
    tiles = "[...document.querySelectorAll('.strip button')].map(b => b.textContent)"
    assert len(browser.evaluate(tiles)) == 12
    _choose(browser, "only", "differ")
    differing = browser.evaluate(tiles)
    assert 0 < len(differing) < 12
    assert all(("\u2713" in text) and ("\u2717" in text) for text in differing)
    _choose(browser, "only", "all")
    _choose(browser, "backbone", 1)
    assert browser.evaluate("document.querySelectorAll('.said').length") == 1
    browser.evaluate("document.querySelectorAll('.strip button')[5].focus()")
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.textContent").startswith("5")
    assert browser.evaluate("document.activeElement.ariaPressed") == "true"
    assert browser.problems() == []


def test_essentials_without_scripts(browser, built):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(built / "index.html", 390, 900)
        text = browser.call("Runtime.evaluate", expression="1")
        assert text  # the protocol itself still answers
        root = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
        for selector in (".headline tbody tr", "svg.chart", "#cells-table tbody tr"):
            nodes = browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]
            box = browser.call("DOM.getBoxModel", nodeId=nodes[0])["model"]
            assert box["width"] > 0 and box["height"] > 0
        (controls, *_) = browser.call(
            "DOM.querySelectorAll", nodeId=root, selector=".needs-script"
        )["nodeIds"]
        with pytest.raises(RuntimeError, match="box model"):
            browser.call("DOM.getBoxModel", nodeId=controls)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_print_shows_every_method_on_paper_colours(browser, built):
    browser.open(built / "index.html", prefers_color_scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = "[...document.querySelectorAll('.tabpanel')].filter(p => p.offsetHeight).length"
        assert browser.evaluate(shown) == 3
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(253, 253, 251)"
        )
        assert browser.evaluate("document.querySelector('#answers').offsetHeight") == 0
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_numbers_appear_beside_the_pointer(browser, built):
    browser.open(built / "index.html")
    x, y = browser.evaluate(
        "(() => { const a = document.querySelector('.hit'); a.scrollIntoView({block: 'center'});"
        " const r = a.getBoundingClientRect(); return [r.x + r.width / 2, r.y + 20] })()"
    )
    browser.settle()
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.evaluate("document.getElementById('tip').hidden") is False
    tip = browser.evaluate("document.getElementById('tip').textContent")
    assert tip.startswith("Mean of 8 tasks at 1/16\nattention: ")
    assert "paper, OLMo2-7B: attention" in tip
