"""Converts a made-up checkpoint and prints the peak memory of doing so, as one JSON line.

    python tests/convert/measure_memory.py olmo2_7b /scratch/folder

The weights are random, bfloat16, in files of about 5 GB; the folder is removed afterwards.
Peak memory is the process's high-water mark of resident memory, mapped files included.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# The converter runs in a process of its own: nothing else counts into its peak.
CHILD = """
import json, re, sys
from ratjax.convert import convert, plan
def status():
    text = open('/proc/self/status').read()
    return {n: int(re.search(rf'{n}:\\s+(\\d+)', text)[1]) * 1024 for n in ('VmHWM', 'VmRSS')}
import jax; jax.numpy.zeros(1)
idle = status()['VmRSS']
planned = plan(sys.argv[1])
convert(sys.argv[2], planned)
largest = max(part.nbytes for part in planned.parts.values())
print(json.dumps({'idle': idle, 'peak': status()['VmHWM'], 'largest': largest,
                  'total': planned.nbytes}))
"""


def measure(source: pathlib.Path, target: pathlib.Path) -> dict:
    """Peak resident memory of converting `source`, in bytes, and the largest stacked tensor's."""
    started = time.monotonic()
    command = [sys.executable, "-c", CHILD, str(source), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - started}


if __name__ == "__main__":
    from convert.checkpoints import write_olmo2
    from ratjax.config.presets import preset

    config, place = preset(sys.argv[1]), pathlib.Path(sys.argv[2])
    try:
        source = write_olmo2(place / "source", config, "BF16", files=6)
        print(json.dumps(measure(source, place / "target")))
    finally:
        shutil.rmtree(place, ignore_errors=True)
