"""Table 5: random selectors on OLMo2-7B. Does a state carry what its position was to be read for?

  python -m launch.evaluate --config=experiments/needle/table5_random.py \\
      --checkpoint=models --workdir=runs/table5

19 settings a backbone: dense, then Quest and MoBA with 16 blocks of 64 and SnapKV with 1024 tokens
(1/4), each with its own selector and with five draws of a random one, which redraws at every step
(Quest), for every query (MoBA), or once after prefill (SnapKV). Behind the file's name: `:free`
draws without forced blocks (MoBA keeps a query's own block, SnapKV a prompt's last token), so that
both causes can be told apart; `:control` adds the matched control; `:golden` runs Quest and SnapKV
with what the answer is copied from always selected, and never; `:swap` runs the memory backbone
alone, choosing by the raw keys that enter its memory while it reads states, the other way round,
and raw ones for both, under random selectors too, with hit rates (figure2_hit_rates.py).
`--config.samples=20` takes a quick look.
"""

import dataclasses

from experiments.needle import settings
from ratjax.config.needle import Setting
from ratjax.config.overrides import to_config_dict

QUEST, SNAPKV = Setting("quest", 64, 16, "1/4"), Setting("snapkv", 1, 1024, "1/4")
MOBA = Setting("moba", 64, 16, "1/4")
STEERED = tuple(
    dataclasses.replace(setting, golden=golden)
    for setting in (QUEST, SNAPKV)
    for golden in ("", "in", "out")
)
# A random selector looks at no keys: what it reads is all there is to exchange.
SWAPPED = tuple(
    dataclasses.replace(setting, selector=selector, select_with=select_with, attend_to=attend_to)
    for setting in (QUEST, MOBA, SNAPKV)
    for selector in ("original", "random")
    for select_with in (("states", "raw") if selector == "original" else ("states",))
    for attend_to in ("states", "raw")
)

NEEDLE = dataclasses.replace(
    settings.NEEDLE,
    checkpoints=settings.OLMO2_PAIR,
    paper_checkpoints="olmo2_7b",
    budgets=("1/4",),
    selectors=("original", "random"),
    selector_seeds=(0, 1, 2, 3, 4),
)


def get_config(variant: str = "paper"):
    with_control = (*settings.OLMO2_PAIR, settings.OLMO2_CONTROL)
    free = {"force_first": False, "force_current": False, "window": 1}
    variants = {
        "paper": NEEDLE,
        "control": dataclasses.replace(NEEDLE, checkpoints=with_control),
        "golden": dataclasses.replace(NEEDLE, methods=(), extra=STEERED, paper_checkpoints=""),
        "swap": dataclasses.replace(
            NEEDLE,
            methods=(),
            extra=SWAPPED,
            checkpoints=tuple(one for one in settings.OLMO2_PAIR if one.memory),
            paper_checkpoints="",
            hit_rates=True,
            # Two sets of keys and values in one cache: half the prompts.
            batch_size=NEEDLE.batch_size // 2,
        ),
        "free": dataclasses.replace(NEEDLE, selectors=("random",), paper_checkpoints="", **free),
    }
    needle = settings.pick(variants, variant)
    name = "table5" if variant == "paper" else f"table5_{variant}"
    description = "OLMo2-7B with and without the memory, selectors replaced by random ones"
    return to_config_dict(settings.olmo2(name, description, needle))
