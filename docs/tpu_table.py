"""Compiles the table of docs/tpu.md, a cell at a time, and writes it there.

  python docs/tpu_table.py olmo2_7b v5p:4x4x4     compiles one cell, then writes the table
  python docs/tpu_table.py                        writes the table of what docs/tpu/ holds

Every cell is the last line of `launch.compile_ahead` on experiments/olmo2_7b_memory.py (the paper's
batch of 768 x 4096 tokens, active recurrence learning in two steps, everything recomputed) with the
model's shape and the microbatches changed.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

from ratjax.config.presets import preset

HERE = pathlib.Path(__file__).parent
EXPERIMENT = "experiments/olmo2_7b_memory.py"
SIZES = {"olmo2_1b": "1B", "olmo2_7b": "7B", "olmo2_13b": "13B"}
PODS = ("v5e:8x8", "v5p:4x4x4", "v6e:16x16")
# Sequences that a chip works on at once.
SEQUENCES = {"v5e:8x8": 1, "v5p:4x4x4": 3, "v6e:16x16": 1}
BEGIN, END = "<!-- table: docs/tpu_table.py -->", "<!-- end of table -->"
GIB = 2**30


def compile_cell(size: str, pod: str) -> None:
    """Compiles one cell and keeps its figures."""
    base, model = preset("olmo2_7b"), preset(size)
    chips = 256 if pod == "v6e:16x16" else 64
    overrides = [
        f"--config.model.{field.name}={getattr(model, field.name)}"
        for field in dataclasses.fields(model)
        if getattr(model, field.name) != getattr(base, field.name)
    ]
    command = [
        *(sys.executable, "-m", "launch.compile_ahead"),
        *(f"--config={EXPERIMENT}", f"--topology={pod}", *overrides),
        f"--config.train.microbatches={768 // chips // SEQUENCES[pod]}",
    ]
    print(*command)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    print(done.stdout)
    keep(size, pod, done.stdout.strip().splitlines()[-1])


def keep(size: str, pod: str, line: str) -> None:
    """Writes a cell's figures."""
    folder = HERE / "tpu"
    folder.mkdir(exist_ok=True)
    name = f"{size}_{pod.replace(':', '_')}.json"
    (folder / name).write_text(json.dumps(json.loads(line), indent=1) + "\n")


def row(size: str, pod: str) -> str:
    """One line of the table; dashes where nothing was compiled."""
    path = HERE / "tpu" / f"{size}_{pod.replace(':', '_')}.json"
    if not path.exists():
        return f"| {SIZES[size]} | {pod} | not compiled | | | | | | |"
    cell = json.loads(path.read_text())
    if not cell["fits"]:
        need = cell["hbm_bytes_per_chip"] / GIB
        return f"| {SIZES[size]} | {pod} | {cell['microbatches']} | needs {need:.1f} | | | | | |"
    memory = cell["memory"]
    state = (memory["parameters"] + memory["optimizer"]) / GIB
    return (
        f"| {SIZES[size]} | {pod} | {cell['microbatches']} | "
        f"{cell['hbm_bytes_per_chip'] / GIB:.2f} of {cell['hbm_available_per_chip'] / GIB:.2f} | "
        f"{state:.2f} | {cell['flops'] / 1e12:,.0f} ({cell['flops_of_model'] / 1e12:,.0f}) | "
        f"{cell['ici_bytes_received'] / 1e9:,.0f} | {sum(cell['kernels'].values())} "
        f"({sum(cell['kernel_runs'].values()):,} runs) | "
        f"{cell['step_seconds']:.2f} s, {cell['bound']} |"
    )


def table() -> str:
    """The whole table, in Markdown."""
    head = (
        "| + memory | pod | microbatches | HBM of a chip, GiB | of it state | TFLOP of a chip "
        "(model's own) | GB received | kernels | step at best, bound by |"
    )
    rows = [row(size, pod) for size in SIZES for pod in PODS]
    return "\n".join([head, "|" + "---|" * 9, *rows])


def main() -> None:
    if len(sys.argv) > 1:
        compile_cell(*sys.argv[1:])
    page = HERE / "tpu.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
