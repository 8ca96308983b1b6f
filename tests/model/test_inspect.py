"""Looking into checkpoints: descriptions without arrays, and slices of arrays."""

import os
import subprocess
import sys

import numpy as np
import pytest

import ratjax
from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.errors import InputError
from ratjax.model.checkpoint import save_model
from ratjax.model.parameters import to_parameters
from tests.decoders import initial

CONFIG = with_memory(preset("tiny"), MemoryConfig())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "model"
    model = initial(CONFIG)
    save_model(folder, model, None, {"source": "made up"})
    return folder, to_parameters(model)


def test_it_lists_every_parameter(saved):
    folder, parameters = saved
    found = ratjax.inspect(folder)
    assert {n: (p.shape, p.dtype) for n, p in found.parameters.items()} == {
        n: (a.shape, str(a.dtype)) for n, a in parameters.items()
    }
    assert found.size == sum(a.size for a in parameters.values())
    assert found.config == CONFIG
    assert found.metadata["provenance"] == {"source": "made up"}
    table = str(found)
    assert "blocks/attention/memory/weight" in table
    assert "source: made up" in table
    assert f"{found.size:,}" in table
    assert found.tree()["blocks"]["attention"]["w_q"] == found.parameters["blocks/attention/w_q"]


@pytest.mark.parametrize("index", [(), 1, (0, slice(3, 9)), (slice(None), 5, 1)], ids=str)
def test_it_reads_slices(saved, index):
    folder, parameters = saved
    expected = np.asarray(parameters["blocks/attention/w_q"])[index]
    np.testing.assert_array_equal(
        ratjax.inspect(folder).read("blocks/attention/w_q", index), expected
    )


def test_what_is_not_there_is_named(saved, tmp_path):
    found = ratjax.inspect(saved[0])
    with pytest.raises(InputError, match=r"did you mean .*blocks/attention/w_q"):
        found.read("blocks/attention/wq")
    with pytest.raises(InputError, match=r"outside of its shape \[512, 64\]"):
        found.read("embedding", 512)
    with pytest.raises(InputError, match="steps there: 0"):
        ratjax.inspect(saved[0], step=3)
    with pytest.raises(InputError, match="no such folder"):
        ratjax.inspect(tmp_path / "none")


def test_importing_the_package_is_cheap():
    code = """
import sys, ratjax
heavy = {"jax", "orbax", "flax", "tensorstore"} & set(sys.modules)
assert not heavy, heavy
from ratjax import needle
assert needle.__name__ == "ratjax.needle"
assert callable(ratjax.load) and callable(ratjax.inspect)
try:
    ratjax.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
