"""Compiled programs in files; on the CPU, where they can also be run."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.ahead import executable
from ratjax.config.data import DataStage
from ratjax.config.mesh import MeshConfig
from ratjax.config.presets import preset
from ratjax.config.train import TrainConfig
from ratjax.errors import InputError


class State(NamedTuple):
    step: jax.Array
    weights: dict[str, jax.Array]


def step(state, x, scale):
    weights = jax.tree.map(lambda w: w + scale * x.sum(), state.weights)
    return State(state.step + 1, weights), {"loss": (weights["a"] @ x).sum()}


@pytest.fixture
def lowered():
    state = State(jnp.int32(3), {"a": jnp.ones((2, 4)), "b": jnp.zeros(3)})
    x = jnp.arange(4.0)
    jitted = jax.jit(step, static_argnames="scale")
    return jitted.lower(state, x, 2), (state, x), jitted(state, x, 2)


STAGE = DataStage(5, 4096, 768, (("tokens", 1.0),), "two_step")
KEY = executable.key_of(
    preset("tiny"), TrainConfig(), STAGE, 5, MeshConfig(1, 64), device_kind="TPU v5"
)


def test_a_saved_program_gives_the_same_results(lowered, tmp_path):
    lowered, args, want = lowered
    size = executable.save(tmp_path / "step", lowered.compile(), KEY)
    assert size == (tmp_path / "step").stat().st_size
    loaded, problem = executable.load(tmp_path / "step", KEY, lambda: lowered)
    assert problem == ""
    have = loaded(*args)
    assert jax.tree.structure(have) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, have, want)


@pytest.mark.parametrize(
    "change", [{"batch_size": 32}, {"jax": "0.1"}, {"sources": "other"}, {"model": {"layers": 3}}]
)
def test_another_key_is_one_line_and_no_program(lowered, tmp_path, change):
    executable.save(tmp_path / "step", lowered[0].compile(), KEY)
    loaded, problem = executable.load(tmp_path / "step", KEY | change, lambda: lowered[0])
    (name,) = change
    assert loaded is None
    assert f"compiled for {name}=" in problem and problem.endswith("compiling anew")
    assert "\n" not in problem


def test_keys_know_versions_and_code():
    assert {"jax", "jaxlib", "libtpu", "sources", "device_kind"} <= KEY.keys()
    assert executable.sources() == KEY["sources"] and len(KEY["sources"]) == 16


def test_what_shapes_no_program_is_in_no_key():
    def key(**changes):
        train = dataclasses.replace(TrainConfig(), **changes)
        return executable.key_of(preset("tiny"), train, STAGE, 5, MeshConfig(1, 64), "TPU v5")

    assert key(log_every=3, checkpoint_every=7, keep=9, seed=1, init_from="there") == KEY
    assert key(microbatches=2) != KEY


def test_files_that_hold_no_program(lowered, tmp_path):
    with pytest.raises(InputError, match="make it with"):
        executable.load(tmp_path / "missing", KEY, lambda: lowered[0])
    (tmp_path / "other").write_text("words")
    with pytest.raises(InputError, match="no compiled program"):
        executable.load(tmp_path / "other", KEY, lambda: lowered[0])


def test_a_damaged_program_is_compiled_anew(lowered, tmp_path):
    executable.save(tmp_path / "step", lowered[0].compile(), KEY)
    content = (tmp_path / "step").read_bytes()
    (tmp_path / "step").write_bytes(content[: len(content) // 2])
    loaded, problem = executable.load(tmp_path / "step", KEY, lambda: lowered[0])
    assert loaded is None and "cannot be loaded" in problem
