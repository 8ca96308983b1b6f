"""What one setting of the paper's tables takes: 8 tasks x 500 prompts of 4096 tokens, 7B weights.

One batch of prompts is prefilled and answered under one setting of every method, as the evaluation
engine does it: the prefill of the dense row is shared by Quest and SnapKV, every answer has all its
tokens. A batch's times, the first (which compiles) left out, give the minutes for all prompts.
Weights and tokens are random: how fast a step is does not depend on what it says. The floor is the
prefill's operations at the device's peak and one read of the weights and of the entries that are
attended to, for every token, at the measured bandwidth. The peer is the dense row.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import app, flags

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import PRESETS, preset, with_memory
from ratjax.model import generation, staged
from ratjax.model.parameters import abstract_parameters, inference_dtypes, to_model
from ratjax.needle import cost
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.pattern import Pattern
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from ratjax.train.flops import peak_flops

METHODS = ("dense", "quest", "snapkv", "moba", "dilated")

_MODEL = flags.DEFINE_enum("model", "olmo2_7b", list(PRESETS), "The model's shape.")
_LAYERS = flags.DEFINE_integer("layers", 0, "Layers, in place of the model's own (0: those).")
_UNROLL = flags.DEFINE_integer("unroll", 1, "Layers a turn of the loop over layers.")
_MEMORY = flags.DEFINE_bool("memory", True, "With the memory, or plain attention.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of weights and cache.")
_CONTEXT = flags.DEFINE_integer("context", 4096, "Tokens of prompt and answer.")
_NEW = flags.DEFINE_integer("new_tokens", 128, "Tokens of an answer, all of them generated.")
_BATCH = flags.DEFINE_integer("batch", 16, "Prompts decoded together.")
_ROWS = flags.DEFINE_integer("rows", 2, "Prompts prefilled together.")
_SAMPLES = flags.DEFINE_integer("samples", 4000, "Prompts a setting: 8 tasks x 500.")
_METHODS = flags.DEFINE_multi_enum("method", METHODS, METHODS, "What to time; dense always is.")
_BLOCK = flags.DEFINE_integer("block", 64, "Tokens a page or block.")
_SHARE = flags.DEFINE_integer("share", 8, "One position in how many is read.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Batches timed; the median counts.")
_BANDWIDTH = flags.DEFINE_float("bandwidth", 0, "Bytes a second for the floor; 0 measures it.")
_PEAK = flags.DEFINE_float("peak", 0, "FLOP/s for the floor; 0 takes the device's data sheet.")
_TARGET = flags.DEFINE_string("target", "needle_full.json", "Where the results go.")


def patterns() -> dict:
    """The settings to time, the dense row first, those that share its prefill behind it."""
    context, block, share = _CONTEXT.value, _BLOCK.value, _SHARE.value
    made = {
        "dense": Dense(),
        "quest": Quest(block, context // block // share),
        "snapkv": SnapKV(window=min(64, context // share), capacity=context // share),
        "moba": MoBA(block, context // block // share),
        "dilated": Dilated(2 * share, context // (2 * share), 4),
    }
    return {name: made[name] for name in METHODS if name in ("dense", *_METHODS.value)}


def timed(function) -> tuple[float, object]:
    """(seconds until the result is there, the result)."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


@functools.partial(jax.jit, static_argnums=(1, 2))
def drawn(key, shape, dtype):
    """Normal, standard deviation 0.02, one layer at a time: float32 temporaries would not fit."""
    keys = jax.random.split(key, shape[0])
    one = lambda key: (0.02 * jax.random.normal(key, shape[1:])).astype(dtype)  # noqa: E731
    return jax.lax.map(one, keys)


def random_model(config):
    """A model for inference with random weights."""
    dtypes = inference_dtypes(config)
    parameters = {}
    for seed, (name, array) in enumerate(abstract_parameters(config).items()):
        # The embedding and the head have no layers: a sixteenth is like one.
        shape = array.shape if name.startswith("blocks/") else (16, array.size // 16)
        found = drawn(jax.random.key(seed), shape, dtypes[name]).reshape(array.shape)
        parameters[name] = found if not name.endswith("norm/weight") else jnp.ones_like(found)
    return to_model(config, parameters)


class Bench:
    """The model, one batch of prompts, and the one cache that all settings use in turn."""

    def __init__(self):
        config = preset(_MODEL.value)
        config = dataclasses.replace(
            config,
            dtype=_DTYPE.value,
            num_layers=_LAYERS.value or config.num_layers,
            unroll=_UNROLL.value,
        )
        memory = (config.memory or MemoryConfig()) if _MEMORY.value else None
        self.config = with_memory(config, memory)
        seconds, self.model = timed(lambda: random_model(self.config).apart())
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.model))
        print(f"weights: {size / 2**30:.1f} GiB, made in {seconds:.0f} s", flush=True)
        prompt = _CONTEXT.value - _NEW.value
        self.width = generation.bucket(prompt)
        rng = np.random.default_rng(0)
        tokens = rng.integers(config.vocab_size, size=(_BATCH.value, self.width), dtype=np.int32)
        self.tokens = jnp.asarray(np.where(np.arange(self.width) < prompt, tokens, 0))
        self.lengths = jnp.full((_BATCH.value,), prompt, jnp.int32)
        self.keys = generation.prompt_keys(np.arange(_BATCH.value), 0)
        self.cache = None
        self.prefilled = None

    def prefill(self, pattern) -> tuple[float, float]:
        """(seconds a batch, seconds more that the first call took); the cache then holds it."""

        def read():
            storage = self.cache if self.prefilled is None else self.prefilled.cache
            self.cache = self.prefilled = None
            return staged.prefill(
                self.model, self.tokens, self.lengths, self.keys, pattern,
                _NEW.value, min(_ROWS.value, _BATCH.value), storage,
            )  # fmt: skip

        return self._repeat(read, keep=lambda result: result)

    def answer(self, pattern) -> tuple[float, float]:
        """The same of the answers to the batch; also notes the entries read."""

        def decode():
            prefilled, self.prefilled = self.prefilled, None
            return staged.answer(
                self.model, prefilled, self.keys, jnp.int32(-1), pattern, _NEW.value
            )

        def keep(result):
            self.read = float(np.mean(result[1].read)) / max(_NEW.value - 1, 1)
            return result[2]

        return self._repeat(decode, keep)

    def _repeat(self, run, keep) -> tuple[float, float]:
        seconds = []
        for _ in range(1 + _REPEATS.value):
            took, result = timed(run)
            self.prefilled = keep(result)
            seconds.append(took)
        steady = float(np.median(seconds[1:]))
        return steady, seconds[0] - steady


def measure(bench: Bench) -> Iterator[tuple[str, Pattern, dict]]:
    """Each setting's times and what they are made of."""
    prefilled_as = None
    for name, pattern in patterns().items():
        shared = pattern.prefills_as == prefilled_as
        if not shared:
            sharing = [p for p in patterns().values() if p.prefills_as == pattern.prefills_as]
            read_s, compile_s = bench.prefill(staged.prefill_pattern(sharing))
            pairs = float(np.mean(bench.prefilled.reads.read))
            prefilled_as = pattern.prefills_as
        answer_s, more = bench.answer(pattern)
        prompts, new = _BATCH.value, _NEW.value
        per_setting = _SAMPLES.value / prompts / 60
        found = {
            "pattern": str(pattern),
            "prefill_s": read_s / prompts,
            "decode_s": answer_s / prompts,
            "prefill_tokens_per_s": prompts * float(bench.lengths[0]) / read_s,
            "decode_tokens_per_s": prompts * (new - 1) / answer_s,
            "minutes_per_setting": (read_s + answer_s) * per_setting,
            "minutes_with_prefill_shared": answer_s * per_setting,
            "prefill_shared": shared,
            "compile_s": more if shared else compile_s + more,
            "read_entries_per_step": bench.read,
            "pairs": pairs,
        }
        print(
            f"{name:8} prefill {found['prefill_s']:.3f} s a prompt, decode "
            f"{found['decode_tokens_per_s']:.0f} tokens/s, {found['minutes_per_setting']:.1f} min "
            f"a setting ({found['minutes_with_prefill_shared']:.1f} with the prefill shared), "
            f"first calls {found['compile_s']:.0f} s more",
            flush=True,
        )
        yield name, pattern, found


def row(
    bench: Bench, name: str, pattern: Pattern, found: dict, dense_ms: float | None, ceilings: dict
):
    """One setting's row of the results."""
    config, prompts, new = bench.config, _BATCH.value, _NEW.value
    length = float(bench.lengths[0])
    peak, bandwidth = ceilings["peak_flops"], ceilings["read_bytes_per_second"]
    flops = prompts * cost.prefill_flops(config, pattern, length, found.pop("pairs"))
    read = cost.decode_bytes(config, pattern, length, found["read_entries_per_step"])
    moved = (new - 1) * (cost.weight_bytes(config) + prompts * read)
    ms = 1e3 * prompts * (found["prefill_s"] + found["decode_s"])
    floor = 1e3 * (flops / peak + moved / bandwidth)
    more = {
        **found,
        "tokens_per_s": prompts * new / (1e-3 * ms),
        "mfu": flops / (prompts * found["prefill_s"] * peak),
        "decode_bandwidth_share": moved / (prompts * found["decode_s"] * bandwidth),
        "kv_bytes_per_token": read,
        "cache_bytes": cost.cache_bytes(config, pattern, length),
        "rows": _ROWS.value,
        "samples": _SAMPLES.value,
    }
    kind = "memory" if config.memory is not None else "attention"
    case = f"{_MODEL.value}-{kind}-{prompts}x{_CONTEXT.value}-{name}"
    shape = (prompts, int(length), new)
    return timing.row("needle_eval", case, shape, ms, floor, "dense", dense_ms or ms, **more)


def main(_):
    peak = _PEAK.value or peak_flops(jax.devices()[0])
    if not peak:
        raise app.UsageError("the device's peak is not known: give --peak")
    ceilings = {
        "peak_flops": peak,
        "read_bytes_per_second": _BANDWIDTH.value or timing.read_bandwidth(),
    }
    bench, rows = Bench(), []
    try:
        for name, pattern, found in measure(bench):
            dense_ms = rows[0]["ms"] if rows else None
            rows.append(row(bench, name, pattern, found, dense_ms, ceilings))
    finally:  # what was measured stays, whatever stops the rest
        timing.finish(rows, ceilings, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
