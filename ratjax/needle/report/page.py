"""index.html: one file with everything in it, for a browser that may have no network."""

from importlib import resources
from string import Template

from ratjax.needle.report import labels
from ratjax.needle.report.content import Content
from ratjax.needle.report.markup import el, escape, join
from ratjax.needle.report.sections.answers import answers
from ratjax.needle.report.sections.cells import cells
from ratjax.needle.report.sections.cost import cost
from ratjax.needle.report.sections.curves import curves
from ratjax.needle.report.sections.failures import failures
from ratjax.needle.report.sections.headline import headline
from ratjax.needle.report.sections.heat import heat
from ratjax.needle.report.sections.hits import hits
from ratjax.needle.report.sections.losses import losses
from ratjax.needle.report.sections.provenance import provenance
from ratjax.needle.report.sections.selectors import selectors
from ratjax.needle.report.sections.tables import tables
from ratjax.needle.report.summary import caveats, findings

# Top to bottom, with the name that the navigation gives them.
_SECTIONS = (
    ("headline", "Scores", headline),
    ("curves", "Curves", curves),
    ("tables", "Tables", tables),
    ("differences", "Differences", heat),
    ("selectors", "Selectors", selectors),
    ("hits", "Hits", hits),
    ("cost", "Cost", cost),
    ("cells", "All cells", cells),
    ("training", "Training", losses),
    ("failures", "Failures", failures),
    ("answers", "Answers", answers),
    ("provenance", "Provenance", provenance),
)


def title(content: Content) -> str:
    pair = " against ".join(reversed(content.backbones[:2]))
    return f"Finding needles under sparse attention: {pair}"


def subtitle(content: Content) -> str:
    runs = list(dict.fromkeys(result.run for result in content.results))
    names = labels.joined(runs) if len(runs) <= 3 else f"{len(runs)} runs"
    tasks = len({result.task for result in content.results})
    parts = [names, f"{tasks} tasks", f"{labels.count(len(content.results))} cells"]
    return " \N{MIDDLE DOT} ".join(parts)


def page(content: Content) -> str:
    """The whole document."""
    built = [(key, name, build(content)) for key, name, build in _SECTIONS]
    present = [(key, name, section) for key, name, section in built if section is not None]
    return Template(_template("page.html")).substitute(
        title=escape(title(content)),
        subtitle=escape(subtitle(content)),
        findings=join(el("p", text, class_="lead") for text in findings(content)),
        caveats=escape(" ".join(caveats(content))),
        navigation=join(el("a", name, href=f"#{key}") for key, name, _ in present),
        sections=join((section for _, _, section in present), "\n"),
        style=_template("style.css"),
        script=_template("script.js"),
    )


def _template(name: str) -> str:
    folder = resources.files("ratjax.needle.report").joinpath("template")
    return folder.joinpath(name).read_text(encoding="utf-8")
