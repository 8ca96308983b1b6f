"""OLMo2-7B with the memory, trained on for 10 billion tokens: the paper's main run (A.1).

  python -m launch.train --config=experiments/olmo2_7b_memory.py --workdir=gs://...

From the paper: FineWeb-Edu, sequences of 4096, 768 of them a step, learning rate 6e-4 for the
memory and 6e-5 for all else, 2 % warmup, weight decay 0.1. Where it is silent: RAT+'s cosine to
1e-6, betas and clipping, its active recurrence learning (a sparse pass and a dense pass, each with
its own step), and a memory that starts near the identity.

Expected, as compiled (docs/tpu.md; never run): on v5p-128 (64 chips) 16.5 GiB of a chip's 95.7 and
at best 13.4 s a step, 11.8 hours for the 3178 steps; on v6e-256 with --config.train.microbatches=3
7.0 of 31.2 GiB and at best 1.7 s, 1.5 hours. The paper took about 10 hours on 64 GH200. Expected
result, after the needle fine-tuning: the scores of the RAT+ rows of the paper's Table 4.
"""

import dataclasses

from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import MeshConfig
from ratjax.config.overrides import to_config_dict
from ratjax.config.presets import preset
from ratjax.config.train import TrainConfig

TOKENS, LENGTH, BATCH = 10_000_000_000, 4096, 768


def get_config():
    pretraining = DataStage(
        steps=TOKENS // (LENGTH * BATCH),
        sequence_length=LENGTH,
        batch_size=BATCH,
        sources=(("data/fineweb-edu", 1.0),),
        recurrence="two_step",
    )
    return to_config_dict(
        Experiment(
            name="olmo2_7b_memory",
            description="OLMo2-7B with the memory, trained on with 10B tokens of FineWeb-Edu.",
            backbone="memory",
            model=dataclasses.replace(preset("olmo2_7b"), dtype="bfloat16", remat="full"),
            train=TrainConfig(
                learning_rate=6e-5,
                memory_learning_rate=6e-4,
                warmup=0.02,
                weight_decay=0.1,
                microbatches=4,
                init_from="models/olmo2_7b",
                checkpoint_every=250,
            ),
            data=DataConfig(stages=(pretraining,), tokenizer="models/olmo2_7b/tokenizer.json"),
            mesh=MeshConfig(data=1, fsdp=-1),
        )
    )
