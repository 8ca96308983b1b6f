"""Times what a needle evaluation does to a batch of prompts, with the CUDA kernels and without.

A batch of prompts is read and 16 tokens are generated under each pattern, greedily, as the
evaluation engine does it; the budget is 1/8 of the context. Weights and tokens are random: how fast
a step is does not depend on what it says. The peer is the same with every operation in plain JAX;
dense attention is cuDNN's in both.
"""

import jax
import models
import numpy as np
import timing
from absl import app, flags

from ratjax.model.decoder import Decoder
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from ratjax.train.flops import forward_flops, peak_flops
from ratjax_kernels import prefer

# name: (model, prompts, tokens of a prompt)
CASES = {"study-32x1024": (models.STUDY, 32, 1024), "olmo2_1b-8x4096": (models.OLMO2_1B, 8, 4096)}

_CASES = flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "What to time.")
_TARGET = flags.DEFINE_string("target", "needle_eval.json", "Where the results go.")
_NEW_TOKENS = 16


def _patterns(length):
    return {
        "dense": Dense(),
        "quest": Quest(page_size=64, pages=length // 512),
        "moba": MoBA(block_size=64, blocks=length // 512),
        "snapkv": SnapKV(window=64, capacity=length // 8),
        "dilated": Dilated(dilation=16, local=length // 16, initial=4),
    }


def _prepare(model, tokens, pattern):
    lengths = np.full(len(tokens), tokens.shape[1])
    jax.clear_caches()
    evaluate = jax.jit(lambda m: m.generate(tokens, lengths, _NEW_TOKENS, pattern=pattern))
    return evaluate.lower(model).compile()


def main(_):
    rows = []
    peak = peak_flops(jax.devices()[0])
    for case in _CASES.value:
        config, prompts, length = CASES[case]
        model = jax.jit(lambda key, config=config: Decoder(config, key))(jax.random.key(0))
        rng = np.random.default_rng(0)
        tokens = rng.integers(config.vocab_size, size=(prompts, length), dtype=np.int32)
        flops = prompts * forward_flops(config, Dense(), length, 1)
        for name, pattern in _patterns(length).items():
            with prefer("cudnn", "xla"):
                without = _prepare(model, tokens, pattern)
            with_kernels = _prepare(model, tokens, pattern)
            ours, plain = (
                timing.milliseconds(evaluate, model, calls=2, repeats=3)
                for evaluate in (with_kernels, without)
            )
            # The floor and the utilisation are those of a dense prefill, whatever the pattern.
            more = {
                "tokens_per_s": 1e3 * prompts * length / ours,
                "mfu": flops / (1e-3 * ours * peak),
            }
            floor = 1e3 * flops / peak
            shape = (prompts, length, _NEW_TOKENS)
            rows.append(
                timing.row(
                    "needle_eval", f"{case}-{name}", shape, ours, floor, "xla", plain, **more
                )
            )
    timing.finish(rows, {"peak_flops": peak}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
