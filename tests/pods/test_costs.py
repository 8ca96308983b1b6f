"""The costs that docs/launch.md states, from the experiment files and the price table."""

import importlib
import pathlib
import re

import pytest

from launch.pods.machines import MACHINES, PRICES_OF, machine_of
from launch.pods.pod import rented

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "launch.md").read_text()
TABLE = PAGE.split("<!-- table: tests/pods/test_costs.py -->")[1].split("<!-- end of table -->")[0]
ROWS = re.findall(r"^\| (\w+) \| ([\w-]+) \| ([\d.]+) \| ([\d,]+) \|$", TABLE, re.MULTILINE)


def test_the_table_is_read():
    assert len(ROWS) == len(TABLE.strip().splitlines()) - 2 > 5


@pytest.mark.parametrize(("run", "pod", "hours", "dollars"), ROWS)
def test_hours_and_dollars(run, pod, hours, dollars):
    header = importlib.import_module(f"experiments.{run}").__doc__
    flops = float(re.search(r"^Compute: (\S+) FLOPs; at 40 % MFU", header, re.MULTILINE)[1])
    topology = rented(pod)
    wanted = flops / (topology.chips * topology.chip.peak_flops * 0.4) / 3600
    assert float(hours) == round(wanted, 1)
    cost = wanted * topology.chips * machine_of(topology).dollars
    # headers give FLOPs to three digits
    assert float(dollars.replace(",", "")) == pytest.approx(cost, rel=5e-3)


def test_prices_are_those_of_the_table():
    for name, machine in MACHINES.items():
        assert f"${machine.dollars:.2f} ({name})" in PAGE
    date, region = PRICES_OF.split(", ")
    assert date in PAGE and region in PAGE
