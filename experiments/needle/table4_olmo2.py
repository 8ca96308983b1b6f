"""Table 4 and Figure 1, right: OLMo2-7B with and without the memory under sparse inference.

  python -m launch.evaluate --config=experiments/needle/table4_olmo2.py \\
      --checkpoint=models --workdir=runs/table4

13 settings a backbone, those of table3_released.py. Behind the file's name: `:control` adds the
matched control, which had the same 10B tokens without the memory; `:dilated` runs dilated
patterns on both backbones, alone and with top-k pages. `--config.samples=20` takes a quick look.
"""

import dataclasses

from experiments.needle import settings
from ratjax.config.overrides import to_config_dict

NEEDLE = dataclasses.replace(
    settings.NEEDLE, checkpoints=settings.OLMO2_PAIR, paper_checkpoints="olmo2_7b"
)


def get_config(variant: str = "paper"):
    variants = settings.tables(NEEDLE)
    with_control = (*settings.OLMO2_PAIR, settings.OLMO2_CONTROL)
    variants["control"] = dataclasses.replace(variants["paper"], checkpoints=with_control)
    needle = settings.pick(variants, variant)
    name = "table4" if variant == "paper" else f"table4_{variant}"
    description = "OLMo2-7B, and OLMo2-7B with the memory after 10B tokens"
    return to_config_dict(settings.olmo2(name, description, needle))
