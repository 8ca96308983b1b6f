"""Names as a reader should see them, and the order in which things stand."""

from fractions import Fraction
from typing import Any

from ratjax.needle.report.records import Setting

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"

_BACKBONES = ("attention", "memory")
_METHODS = {
    "dense": ("Dense", "Every query reads every earlier key and value."),
    "dilated": (
        "Dilated",
        "A fixed pattern: every D-th key, some recent and some initial ones. Reads and, if the "
        "cache drops the rest, stores less.",
    ),
    "quest": (
        "Quest",
        "Each decoded token reads the K blocks whose bounds promise the largest attention score. "
        "Prefill is dense and the whole cache is kept.",
    ),
    "moba": (
        "MoBA",
        "In prefill each query reads its own block and the blocks whose mean key fits it best. "
        "Decoding is dense.",
    ),
    "snapkv": (
        "SnapKV",
        "After a dense prefill only the K tokens that the prompt's last queries attend to most "
        "stay in the cache.",
    ),
}
_TASKS = {
    "niah_single_1": ("S-1", "one needle in noise"),
    "niah_single_2": ("S-2", "one needle in essays"),
    "niah_single_3": ("S-3", "one long value, in essays"),
    "niah_multikey_1": ("MK-1", "one of four keys, in essays"),
    "niah_multikey_2": ("MK-2", "one key, needles only"),
    "niah_multikey_3": ("MK-3", "long keys and values, needles only"),
    "niah_multivalue": ("MV", "four values of one key"),
    "niah_multiquery": ("MQ", "four keys asked at once"),
}
_KINDS = {"original": "own selector", "random": "random selector"}
# What a setting's other fields append to its selector's name (`needle.settings.identity`).
_CHANGES = {
    "golden_in": "answer forced in",
    "golden_out": "answer forced out",
    "select_with_raw": "selecting by raw keys",
    "attend_to_raw": "attending to raw keys and values",
}
_SELECTOR_ORDER = ["original", "random", *(f"original_{change}" for change in _CHANGES)]
_METHOD_ORDER = list(_METHODS)
_TASK_ORDER = list(_TASKS)


def _position(value: str, known: list[str] | tuple[str, ...]) -> tuple[int, str]:
    return (known.index(value) if value in known else len(known), value)


def backbone_order(name: str) -> Any:
    return _position(name, _BACKBONES)


def task_order(name: str) -> Any:
    return _position(name, _TASK_ORDER)


def method_order(name: str) -> Any:
    return _position(name, _METHOD_ORDER)


def selector_order(name: str) -> Any:
    return _position(name, _SELECTOR_ORDER)


def method(name: str) -> str:
    return _METHODS.get(name, (name, ""))[0]


def method_note(name: str) -> str:
    """One sentence on what the method reads, "" for a method this module does not know."""
    return _METHODS.get(name, (name, ""))[1]


def task(name: str) -> str:
    return _TASKS.get(name, (name, ""))[0]


def task_note(name: str) -> str:
    return _TASKS.get(name, (name, ""))[1]


def selector_suffix(selector: str) -> str:
    """ ", random selector" and the like; nothing for the method's own selector."""
    return "" if selector == "original" else f", {selector_name(selector)}"


def selector_name(selector: str) -> str:
    """ "answer forced in" of "original_golden_in": the kind unless original, then the changes."""
    kind, _, changes = selector.partition("_")
    names = [] if kind == "original" and changes else [_KINDS.get(kind, f"{kind} selector")]
    while changes:
        known = next((c for c in _CHANGES if changes == c or changes.startswith(f"{c}_")), changes)
        names.append(_CHANGES.get(known, known.replace("_", " ")))
        changes = changes[len(known) + 1 :]
    return ", ".join(names)


def variant(setting: Setting) -> str:
    """Method with its block size, without budget and selector: "Quest, blocks of 64"."""
    name = method(setting.method)
    return f"{name}, blocks of {setting.block_size}" if setting.block_size else name


def kept(setting: Setting) -> str:
    """What K means here: "16 blocks of 64", "1024 tokens", or "" where there is no K."""
    if setting.k is None:
        return ""
    if setting.method == "dilated":
        return f"{setting.k} pages, and every {setting.block_size}th key elsewhere"
    if not setting.block_size:
        return f"{setting.k} tokens"
    return f"{setting.k} block{'' if setting.k == 1 else 's'} of {setting.block_size}"


def setting(value: Setting, blocks_matter: bool) -> str:
    """ "Quest 1/4, random selector", with ", blocks of 64" inside where that tells rows apart."""
    if value.is_dense:
        return method(value.method)
    blocks = f", blocks of {value.block_size}" if value.block_size and blocks_matter else ""
    return f"{method(value.method)} {value.budget}{blocks}{selector_suffix(value.selector)}"


def budget(value: str) -> str:
    """The fraction in lowest terms, as text."""
    return str(Fraction(value))


def number(value: float | None, digits: int = 1) -> str:
    """A score with a true minus sign; a dash for None."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    # -0.04 must not print as minus nothing.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float | None, digits: int = 1) -> str:
    """Like `number`, with a plus where it is above zero."""
    text = number(value, digits)
    return f"+{text}" if value is not None and float(f"{value:.{digits}f}") > 0 else text


def interval(low: float, high: float, digits: int = 1) -> str:
    """ "[12.3, 45.6]"."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def percent(share: float | None) -> str:
    """0.25 -> "25.0 %"."""
    return DASH if share is None else f"{100 * share:.1f} %"


def probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def count(value: int) -> str:
    """Thousands separated by a thin, unbreakable space."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def joined(parts: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
