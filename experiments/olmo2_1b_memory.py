"""OLMo2-1B with the memory, trained on for 10 billion tokens: a fifth of the main run's cost.

  python -m launch.train --config=experiments/olmo2_1b_memory.py --workdir=models/olmo2_1b_memory

The paper has no model of this size. As for 7B there, the memory's learning rate is the one that
RAT+ was pretrained with at this size (8e-4), all else has a tenth of it, and the batch is RAT+'s
(512 sequences of 4096). olmo2_1b_control.py is its control. On 8 GPUs of 80 GB this is a day's run.

Needs: models/olmo2_1b (launch.convert, allenai/OLMo-2-0425-1B) and data/fineweb-edu
(launch.tokenize).

Compute: 1.7e+20 FLOPs; at 40 % MFU 4.0 hours on 64 chips of v5p, 14.9 hours on 8 H100.
State: 17.3 GiB in all, of 1.55 billion parameters.
Result: unknown; nothing published to compare with.
"""

from experiments.recipes import olmo2, on_text
from ratjax.config.overrides import to_config_dict


def get_config():
    return to_config_dict(
        on_text(
            "olmo2_1b_continued",
            "OLMo2-1B, trained on with 10B tokens of FineWeb-Edu.",
            olmo2("olmo2_1b"),
            tokens=10e9,
            batch=512,
            learning_rate=8e-5,
            memory_learning_rate=8e-4,
            microbatches=2,
            init_from="models/olmo2_1b",
        )
    )
