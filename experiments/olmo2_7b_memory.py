"""OLMo2-7B with the memory, trained on for 10 billion tokens: the paper's main run (A.1).

  python -m launch.train --config=experiments/olmo2_7b_memory.py --workdir=models/olmo2_7b_memory

From the paper: FineWeb-Edu, sequences of 4096, 768 of them a step, learning rate 6e-4 for the
memory and 6e-5 for all else, 2 % warmup, weight decay 0.1. Where it is silent: RAT+'s cosine to
1e-6, betas and clipping, its active recurrence learning (a sparse pass and a dense pass, each with
its own step), and a memory that starts near the identity. olmo2_7b_control.py is its control.

Needs: models/olmo2_7b (launch.convert, allenai/OLMo-2-1124-7B) and data/fineweb-edu
(launch.tokenize).

Compute: 9.23e+20 FLOPs; at 40 % MFU 21.8 hours on 64 chips of v5p, 10.1 hours on 64 H100.
State: 87.6 GiB in all, of 7.84 billion parameters.
As compiled (docs/tpu.md; never run): on v5p-128 (64 chips) about 17 of a chip's 96 GiB, and at best
13 s a step, 12 hours; on v6e-256 with --config.train.microbatches=3 about 7 of 31 GiB and 1.7 s.
The paper took about 10 hours on 64 GH200.
Result, after the needle fine-tuning (olmo2_7b_sft.py): the paper's Table 4 has, as means over eight
tasks at 1/4, 1/8 and 1/16 of the keys: Quest 99.95 99.28 87.84, MoBA 99.92 99.65 97.18, SnapKV
96.99 89.56 75.06. Not reproduced here.
"""

from experiments.recipes import olmo2, on_text
from ratjax.config.overrides import to_config_dict


def get_config():
    return to_config_dict(
        on_text(
            "olmo2_7b_continued",
            "OLMo2-7B, trained on with 10B tokens of FineWeb-Edu.",
            olmo2("olmo2_7b"),
            tokens=10e9,
            batch=768,
            learning_rate=6e-5,
            memory_learning_rate=6e-4,
            microbatches=4,
            init_from="models/olmo2_7b",
        )
    )
