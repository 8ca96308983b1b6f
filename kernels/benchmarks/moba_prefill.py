"""Times MoBA on whole sequences, forward and with all gradients, against dense attention by cuDNN.

Everything counts: block means, selection, lists, attention. Queries and keys are random, so that
neighbouring queries choose different blocks. The floor is the arithmetic of the listed pairs of
query and key (4 D operations each forward, 10 D backward) at the measured speed of a large matrix
product. Each stage is timed alone as well.
"""

import functools

import jax
import jax.numpy as jnp
import timing
from absl import app, flags

from ratjax_kernels import block_means, block_prefill, block_select
from ratjax_kernels.block_prefill import triton as moba
from ratjax_kernels.block_prefill import triton_launch as stages

_TARGET = flags.DEFINE_string("target", "moba_prefill.json", "Where the results go.")

BATCH, HEADS, CHANNELS = 2, 16, 128
# Name -> length, block size, blocks a query.
CASES = {
    "8192": (8192, 128, 8),
    "16384": (16384, 128, 8),
    "32768": (32768, 128, 8),
    "65536": (65536, 128, 8),
    "4096-block64-top4": (4096, 64, 4),
    "4096-block64-top8": (4096, 64, 8),
    "4096-block64-top16": (4096, 64, 16),
}
SPLIT = ("32768", "4096-block64-top8")  # cases whose stages are timed one by one


def _shape(length):
    return jax.ShapeDtypeStruct((BATCH, length, HEADS, CHANNELS), jnp.bfloat16)


def _inputs(length):
    shape = _shape(length)
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, shape.shape, shape.dtype) for key in keys]


def _sparse(block_size, blocks, q, k, v):
    ids = block_select(q, block_means(k, block_size), block_size, blocks, True, "triton")
    return block_prefill(q, k, v, ids, block_size, "triton")


def _train(attention, q, k, v, d_out):
    out, pull = jax.vjp(attention, q, k, v)
    return out, pull(d_out)


def pairs(length: int, block_size: int, blocks: int) -> int:
    """Visible query-key pairs of one head."""
    own = sum(t % block_size + 1 for t in range(length))
    return own + sum(min(t // block_size, blocks - 1) * block_size for t in range(length))


def _stages(length, block_size, blocks):
    """(what, names of its results, function, names of its arguments) in order."""
    sizes = stages.Sizes(
        BATCH, length, HEADS, HEADS, CHANNELS, block_size, blocks, jnp.dtype(jnp.bfloat16)
    )

    def choose(q, means):
        return block_select(q, means, block_size, blocks, True, "triton")

    def of(stage):
        return functools.partial(stage, sizes)

    return (
        ("block means", "means", lambda k: block_means(k, block_size), "k"),
        ("selection", "block_ids", choose, "q means"),
        ("lists", "ids lists", of(stages.make_lists), "block_ids"),
        ("visits", "parts part_lse", of(stages.visit), "q k v lists"),
        ("own and first block", "near near_lse", of(stages.local), "q k v ids"),
        ("merge", "out lse", of(stages.merge), "ids parts part_lse near near_lse"),
        ("delta", "delta", of(moba.delta_of), "d_out out"),
        (
            "gradients",
            "dk dv parts dk_sums dv_sums",
            of(stages.gradients),
            "q k v d_out lse delta lists",
        ),
        ("long lists", "dk dv", of(stages.add_segments), "dk dv dk_sums dv_sums lists"),
        ("query gradients", "dq", of(stages.add_entries), "parts ids"),
    )


def _compile_stages(length, block_size, blocks):
    known = dict.fromkeys(("q", "k", "v", "d_out"), _shape(length))
    compiled = []
    for what, results, function, arguments in _stages(length, block_size, blocks):
        args = [known[name] for name in arguments.split()]
        compiled.append((what, results, jax.jit(function).lower(*args).compile(), arguments))
        known |= _named(results, jax.eval_shape(function, *args))
    return compiled


def _named(names, results):
    names = names.split()
    return dict(zip(names, results if len(names) > 1 else [results], strict=True))


def compile_all() -> dict:
    """Everything that runs, compiled: case -> (inputs, programs by op, stages)."""
    programs = {}
    for case, (length, block_size, blocks) in CASES.items():
        shape = _shape(length)
        attentions = (functools.partial(_sparse, block_size, blocks), timing.cudnn_attention)
        forward = [jax.jit(f).lower(*[shape] * 3).compile() for f in attentions]
        train = [
            jax.jit(functools.partial(_train, f)).lower(*[shape] * 4).compile() for f in attentions
        ]
        split = _compile_stages(length, block_size, blocks) if case in SPLIT else ()
        by_op = {"moba_prefill_forward": forward, "moba_prefill_train": train}
        inputs = jax.jit(functools.partial(_inputs, length)).lower().compile()
        programs[case] = inputs, by_op, split
    return programs


def _time_stages(compiled, arrays):
    values = dict(zip(("q", "k", "v", "d_out"), arrays, strict=True))
    times = {}
    for what, results, function, arguments in compiled:
        args = [values[name] for name in arguments.split()]
        times[what] = timing.milliseconds(function, *args, calls=5, repeats=5)
        values |= _named(results, function(*args))
    return times


def measure(programs: dict) -> tuple[list[dict], float]:
    """The results' rows, and the floating-point operations a second of a matrix product."""
    flops = max(timing.matmul_flops() for _ in range(2))  # the first also raises the GPU's clocks
    rows = []
    for case, (length, block_size, blocks) in CASES.items():
        inputs, by_op, split = programs[case]
        arrays = inputs()
        work = BATCH * HEADS * CHANNELS * pairs(length, block_size, blocks)
        calls = 20 if length < 32768 else 3
        for op, (sparse, dense) in by_op.items():
            train = op.endswith("train")
            args = arrays if train else arrays[:3]
            ms, peer = (
                timing.milliseconds(f, *args, calls=calls, repeats=5) for f in (sparse, dense)
            )
            needed = (14 if train else 4) * work
            floor = 1e3 * needed / flops
            # q, k, v and the output; backward reads those and dout, and writes dq, dk, dv.
            more = {"flops": needed, "bytes": (12 if train else 4) * arrays[0].nbytes}
            if train and split:
                more["stages_ms"] = _time_stages(split, arrays)
            rows.append(
                timing.row(op, case, _shape(length).shape, ms, floor, "cudnn dense", peer, **more)
            )
    return rows, flops


def main(_):
    rows, flops = measure(compile_all())
    for row in rows:
        if "stages_ms" in row:
            print(row["case"], {name: round(ms, 3) for name, ms in row["stages_ms"].items()})
    timing.finish(rows, {"matmul_flops_per_second": flops}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
