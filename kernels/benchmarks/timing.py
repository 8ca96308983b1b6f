"""Timing on a GPU, the ceilings to compare with, and the form of a results file."""

import importlib.metadata
import json
import os
import statistics
import subprocess
import time

import jax
import jax.numpy as jnp

_PACKAGES = ("jax", "jaxlib", "jax-triton", "triton", "torch")


def milliseconds(function, *args, calls: int = 20, repeats: int = 9) -> float:
    """The median over `repeats` of the mean time of `calls` calls queued back to back.

    Queueing hides what a launch costs the host, which is right for operations of a training step.
    Inputs should be larger than the GPU's cache.
    """
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a copy of 1 GiB that adds one."""
    x = jax.random.normal(jax.random.key(0), (2**29,), jnp.bfloat16)
    return 2 * x.nbytes / (1e-3 * milliseconds(jax.jit(lambda x: x + jnp.bfloat16(1)), x))


def row(op, case, shape, ms, floor_ms, peer, peer_ms) -> dict:
    """One result; `speedup` is over the peer."""
    return {
        "op": op,
        "case": case,
        "shape": list(shape),
        "ms": ms,
        "floor_ms": floor_ms,
        "fraction_of_floor": floor_ms / ms,
        "peer": peer,
        "peer_ms": peer_ms,
        "speedup": peer_ms / ms,
    }


def finish(rows: list[dict], ceilings: dict, target: str) -> None:
    """Prints the rows as a table and writes them, with device and versions, to `target`."""
    print(f"{'op':24}{'case':12}{'ms':>9}{'floor':>9}{'of floor':>10}{'peer ms':>10}{'speedup':>9}")
    for r in rows:
        print(
            f"{r['op']:24}{r['case']:12}{r['ms']:9.3f}{r['floor_ms']:9.3f}"
            f"{r['fraction_of_floor']:10.2f}{r['peer_ms']:10.3f}{r['speedup']:9.2f}  ({r['peer']})"
        )
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"driver": driver}
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
