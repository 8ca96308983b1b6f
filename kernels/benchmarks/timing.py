"""Timing on a GPU, the ceilings to compare with, and the form of a results file."""

import functools
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import time

# Peers of other libraries need room on the GPU too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

_PACKAGES = ("jax", "jaxlib", "jax-triton", "triton", "torch")


_WARM_UP = 0.2  # seconds that a device which idled needs to reach its clocks


def warm(run) -> None:
    """Runs something until the device has reached its clocks."""
    end = time.perf_counter() + _WARM_UP
    run()
    while time.perf_counter() < end:
        run()


def milliseconds(function, *args, calls: int = 20, repeats: int = 9) -> float:
    """The median over `repeats` of the mean time of `calls` calls queued back to back.

    Queueing hides what a launch costs the host, which is right for operations of a training step.
    Inputs should be larger than the GPU's cache.
    """
    warm(lambda: jax.block_until_ready(function(*args)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(times)


def chained_milliseconds(step, carry, *args, steps: int = 50, repeats: int = 9) -> float:
    """The median over `repeats` of the mean time of a step among `steps` in one program.

    For operations so short that the host could not queue them fast enough, and for those that
    update a cache in place: `carry = step(carry, *args)`. Ten steps a turn of the loop, so that
    the loop's own work is not counted; starting a program and hearing of its end take some 0.2 ms
    in all, so `steps` should be many where they are short.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def many(carry, *args):
        body = lambda _, carry: step(carry, *args)  # noqa: E731
        return jax.lax.fori_loop(0, steps, body, carry, unroll=10)

    def run():
        nonlocal carry
        carry = jax.block_until_ready(many(carry, *args))

    warm(run)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / steps)
    return 1e3 * statistics.median(times)


def advancing_milliseconds(step, start, calls: int, repeats: int = 5) -> float:
    """`milliseconds` of `carry = step(carry)` from `start()`; `step` may donate its argument."""
    carry = jax.block_until_ready(step(start()))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            carry = step(carry)
        jax.block_until_ready(carry)
        times.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(times)


def torch_milliseconds(function, calls: int = 20, repeats: int = 9) -> float:
    """`milliseconds` for a function of PyTorch, by CUDA events."""
    import torch

    def run():
        function()
        torch.cuda.synchronize()

    warm(run)
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a copy of 1 GiB that adds one."""
    x = jax.random.normal(jax.random.key(0), (2**29,), jnp.bfloat16)
    return 2 * x.nbytes / (1e-3 * milliseconds(jax.jit(lambda x: x + jnp.bfloat16(1)), x))


def read_bandwidth() -> float:
    """Bytes a second of the sum of 2 GiB: what a kernel that hardly writes can reach."""
    x = jax.random.normal(jax.random.key(0), (2**17, 2**13), jnp.bfloat16)
    add = jax.jit(lambda x: x.astype(jnp.float32).sum(axis=1))
    return x.nbytes / (1e-3 * milliseconds(add, x))


def matmul_flops() -> float:
    """Floating-point operations a second of a bfloat16 product of 8192 x 8192 random matrices."""
    n = 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    return 2 * n**3 / (1e-3 * milliseconds(jax.jit(jnp.matmul), a, b))


def cudnn_attention(q, k, v):
    """Dense causal attention by cuDNN: what prefill and training would use instead."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def row(op, case, shape, ms, floor_ms, peer, peer_ms, **more) -> dict:
    """One result; `speedup` is over the peer. Both are None where there is none.

    `more` is what else a reader needs to know; `bytes` and `flops`, the least that the operation
    moves and computes, put it into the roofline picture.
    """
    return {
        "op": op,
        "case": case,
        "shape": list(shape),
        "ms": ms,
        "floor_ms": floor_ms,
        "fraction_of_floor": floor_ms / ms,
        "peer": peer,
        "peer_ms": peer_ms,
        "speedup": peer_ms and peer_ms / ms,
        **more,
    }


def finish(rows: list[dict], ceilings: dict, target: str) -> None:
    """Prints the rows as a table and writes them, with device and versions, to `target`."""
    print(f"{'op':24}{'case':26}{'ms':>9}{'floor':>9}{'of floor':>10}{'peer ms':>10}{'speedup':>9}")
    for r in rows:
        ours = f"{r['ms']:9.3f}{r['floor_ms']:9.3f}{r['fraction_of_floor']:10.2f}"
        theirs = f"{r['peer_ms']:10.3f}{r['speedup']:9.2f}  ({r['peer']})" if r["peer"] else ""
        print(f"{r['op']:24}{r['case']:26}{ours}{theirs}")
    versions = {}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        versions["driver"] = found.stdout.strip()
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0].device_kind
    content = {"device": device, "versions": versions, "ceilings": ceilings, "rows": rows}
    temporary = f"{target}.tmp"
    with open(temporary, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    os.replace(temporary, target)
