"""From a setting's fields to the pattern that runs it."""

from ratjax.config.needle import Setting
from ratjax.sparsity import Pattern
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from ratjax.sparsity.swapped import Swapped

# In which phase a method leaves entries unread (paper, Table 1); both for dilated patterns.
_SPARSE_PHASES = {
    "dense": ("decode",),
    "dilated": ("prefill", "decode"),
    "quest": ("decode",),
    "moba": ("prefill",),
    "snapkv": ("decode",),
}


def sparse_phases(setting: Setting) -> tuple[str, ...]:
    """The phases in which a setting leaves entries unread; dense counts as decoding."""
    return ("decode",) if setting.page_size else _SPARSE_PHASES[setting.method]


def pattern_of(setting: Setting) -> Pattern:
    """The pattern of one setting.

    Raises:
      ConfigError: parameters that do not go together, such as fewer pages than are forced.
    """
    pattern = _of_method(setting)
    if setting.uses_raw:
        return Swapped(pattern, setting.select_with, setting.attend_to)
    return pattern


def _of_method(setting: Setting) -> Pattern:
    match setting.method:
        case "quest":
            return Quest(
                setting.block_size,
                setting.k,
                setting.force_first,
                setting.force_current,
                selector=setting.selector,
                golden=setting.golden,
            )
        case "moba":
            return MoBA(
                setting.block_size, setting.k, setting.force_first, selector=setting.selector
            )
        case "snapkv":
            return SnapKV(
                setting.window,
                setting.k,
                setting.kernel_size,
                setting.pooling,
                selector=setting.selector,
                golden=setting.golden,
            )
        case "dilated" if setting.page_size:
            return Quest(
                setting.page_size,
                setting.k,
                setting.force_first,
                setting.force_current,
                selector=setting.selector,
                dilation=setting.block_size,
            )
        case "dilated":
            return Dilated(setting.block_size, setting.local, setting.initial)
    return Dense()


def identity(setting: Setting) -> dict[str, object]:
    """The fields that name a setting in `results.json` and in predictions."""
    changed = {"golden": "", "select_with": "states", "attend_to": "states"}
    suffixes = [
        f"_{field}_{getattr(setting, field)}"
        for field, usual in changed.items()
        if getattr(setting, field) != usual
    ]
    return {
        "method": setting.method,
        "block_size": None if setting.method in ("dense", "snapkv") else setting.block_size,
        "k": setting.k or None,
        "budget": setting.budget,
        "selector": "".join([setting.selector, *suffixes]),
        "selector_seed": setting.selector_seed,
    }
