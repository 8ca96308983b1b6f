"""Needle fine-tuning of OLMo2-7B, as the paper's tables have it (Section 4, A.1).

  python -m launch.prepare --config=experiments/olmo2_7b_sft.py
  python -m launch.train --config=experiments/olmo2_7b_sft.py:memory \\
      --workdir=models/olmo2_7b_memory_sft

Behind the file's name, which model: `memory` (models/olmo2_7b_memory), `attention`
(models/olmo2_7b, as released) or `control` (models/olmo2_7b_control). The work folders' names are
those that experiments/needle/table4_olmo2.py looks for: olmo2_7b_memory_sft, olmo2_7b_sft,
olmo2_7b_control_sft.

From the paper: a training split of the eight tasks with another seed, learning rate 1e-5, 32 rows a
step. From the released code: as many rows as 18,000 four times over (in rounds here; drawn with
replacement there), weight decay 0.01, 5 % warmup, the loss on answers alone. The paper's "7M
training tokens" are a tenth of one such round. A sparse pass beside the dense one:
`--config.data.stages[0].recurrence=two_step` (the paper does not say; the released code's file for
it serves both). `launch.prepare` makes the rows (data/needles), once for
all variants; on a pod every host needs them.

Compute: 1.41e+19 FLOPs; at 40 % MFU 0.7 hours on 32 chips of v5p, 1.2 hours on 8 H100.
State: 87.6 GiB in all, of 7.84 billion parameters. At most 32 devices: a step has 32 rows.
The paper took about 2 hours on 16 GH200.
Result: with `memory`, the scores that olmo2_7b_memory.py lists; with `attention`, the paper's
attention rows, which olmo2_7b_control.py lists. Not reproduced here.
"""

from experiments.needle.settings import pick
from experiments.recipes import olmo2, on_needles
from ratjax.config.overrides import to_config_dict

# The backbone, and where it starts from.
VARIANTS = {
    "memory": ("memory", "models/olmo2_7b_memory"),
    "attention": ("attention", "models/olmo2_7b"),
    "control": ("attention", "models/olmo2_7b_control"),
}


def get_config(variant: str = "memory"):
    backbone, start = pick(VARIANTS, variant)
    config = to_config_dict(
        on_needles(
            "olmo2_7b_sft",
            "OLMo2-7B, fine-tuned on the needle tasks.",
            olmo2("olmo2_7b"),
            start=start,
        )
    )
    config.backbone = backbone
    return config
