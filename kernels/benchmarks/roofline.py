"""Draws the committed results as a roofline: arithmetic a byte against arithmetic a second.

Rows with `bytes` and `flops` become points; the roof is the measured copy bandwidth and the
measured matrix product. How far a point lies under the roof is what its kernel still loses.
"""

import json
import pathlib

import matplotlib
import numpy as np
from absl import app, flags

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_HERE = pathlib.Path(__file__).parent
_RESULTS = flags.DEFINE_string("results", str(_HERE / "results"), "Folder of result files.")
_TARGET = flags.DEFINE_string("target", str(_HERE.parent / "roofline.png"), "The picture.")

_MARKERS = "osD^vP*Xdph<>"


def _read(folder):
    rows, ceilings, devices = [], {}, set()
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        content = json.loads(path.read_text())
        rows += [r for r in content["rows"] if "bytes" in r and "flops" in r]
        for name, value in content["ceilings"].items():
            ceilings[name] = max(value, ceilings.get(name, 0))
        devices.add(content["device"])
    return rows, ceilings, ", ".join(sorted(devices))


def main(_):
    rows, ceilings, device = _read(_RESULTS.value)
    bandwidth, peak = ceilings["copy_bytes_per_second"], ceilings["matmul_flops_per_second"]
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    intensity = np.geomspace(0.2, 2e4, 200)
    axes.plot(intensity, np.minimum(intensity * bandwidth, peak) / 1e12, color="0.25")
    axes.annotate(
        f"copy {bandwidth / 1e12:.2f} TB/s", (7, 10 * bandwidth / 1e12), rotation=35, fontsize=8
    )
    axes.annotate(
        f"matrix product {peak / 1e12:.0f} TFLOP/s", (300, 1.12 * peak / 1e12), fontsize=8
    )
    operations = sorted({r["op"] for r in rows})
    for marker, operation in zip(_MARKERS, operations, strict=False):
        points = [r for r in rows if r["op"] == operation]
        axes.plot(
            [r["flops"] / r["bytes"] for r in points],
            [r["flops"] / (1e-3 * r["ms"]) / 1e12 for r in points],
            marker,
            label=operation,
            markersize=6,
            alpha=0.75,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="floating-point operations a byte (least of both)",
        ylabel="TFLOP/s reached",
        title=device,
    )
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, loc="lower right", ncols=2)
    figure.savefig(_TARGET.value, dpi=130)


if __name__ == "__main__":
    app.run(main)
