"""What the selection is worth: the same method and budget under other selectors.

The paper's second hypothesis: states carry what their neighbours were to be read for, so an answer
survives a selection that misses it. Rows of one method, block size, K and budget differ in the
selector alone: its own, random, selecting by the keys that enter the memory, attending to them, or
with the answer's positions forced in or out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ratjax.needle.report.compare import estimate
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.pairing import independent, pair_cells
from ratjax.needle.report.predictions import Predictions
from ratjax.needle.report.records import Setting
from ratjax.needle.report.tables import TableCell, TableRow, table_rows
from ratjax.needle.statistics import Estimate


@dataclass(frozen=True)
class SelectorRow:
    """One selector on one backbone.

    Attributes:
        seeds: how many replicates the score is a mean of.
        minus_own: its mean score minus that of the method's own selector on the same prompts, in
            points; None for the own selector, or without predictions of both.
    """

    setting: Setting
    backbone: str
    mean: TableCell
    seeds: int
    minus_own: Estimate | None


def selector_rows(content: Content, group: Group) -> list[SelectorRow]:
    """Settings that share everything but the selector with another one."""
    rows = {(row.setting, row.backbone): row for row in table_rows(content, group)}
    found: list[SelectorRow] = []
    for settings in _families(group).values():
        own = next((s for s in settings if s.selector == "original"), None)
        for setting in settings:
            for backbone in group.backbones:
                row = rows.get((setting, backbone))
                if row is not None:
                    found.append(_row(group, content.predictions, own, row))
    return found


def _families(group: Group) -> Mapping[tuple, list[Setting]]:
    families: dict[tuple, list[Setting]] = {}
    for s in group.sparse_settings:
        families.setdefault((s.method, s.block_size, s.k, s.budget), []).append(s)
    return {key: settings for key, settings in families.items() if len(settings) > 1}


def _row(group: Group, predictions: Predictions, own: Setting | None, row: TableRow) -> SelectorRow:
    cells = group.of_setting(row.backbone, row.setting)
    minus_own = None
    if own is not None and own != row.setting and len(cells) == len(group.tasks):
        minus_own = _minus(group, predictions, row.backbone, own, row.setting)
    seeds = max(len(cell.results) for cell in cells)
    return SelectorRow(row.setting, row.backbone, row.mean, seeds, minus_own)


def _minus(
    group: Group, predictions: Predictions, backbone: str, own: Setting, other: Setting
) -> Estimate | None:
    strata = []
    for task in group.tasks:
        first, second = (group.cell(backbone, setting, task) for setting in (own, other))
        if first is None or second is None:
            return None
        # The own selector draws nothing: its one answer faces each of the other's draws.
        pairs = pair_cells(first, second, predictions, by_training=True)
        if pairs is None:
            return None
        strata.append(independent(pairs.differences, pairs.seeds))
    same = len({len(rows) for rows in strata}) == 1
    return estimate(strata) if same else None
