"""Compiled programs in files; on the CPU, where they can also be run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.ahead import executable
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


KEY = executable.key_of("train", {"model": {"layers": 2}, "mesh": [1, 2]}, "TPU v5", 64)


def test_a_saved_program_gives_the_same_results(lowered, tmp_path):
    lowered, args, want = lowered
    size = executable.save(tmp_path / "step", lowered.compile(), KEY)
    assert size == (tmp_path / "step").stat().st_size
    loaded, problem = executable.load(tmp_path / "step", KEY, lowered)
    assert problem == ""
    have = loaded(*args)
    assert jax.tree.structure(have) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, have, want)


@pytest.mark.parametrize(
    "change", [{"devices": 32}, {"jax": "0.1"}, {"sources": "other"}, {"model": {"layers": 3}}]
)
def test_another_key_is_one_line_and_no_program(lowered, tmp_path, change):
    executable.save(tmp_path / "step", lowered[0].compile(), KEY)
    loaded, problem = executable.load(tmp_path / "step", KEY | change, lowered[0])
    (name,) = change
    assert loaded is None
    assert f"compiled for {name}=" in problem and problem.endswith("compiling anew")
    assert "\n" not in problem


def test_keys_know_versions_and_code():
    assert {"jax", "jaxlib", "libtpu", "sources", "device_kind"} <= KEY.keys()
    assert executable.sources() == KEY["sources"] and len(KEY["sources"]) == 16


def test_files_that_hold_no_program(lowered, tmp_path):
    with pytest.raises(InputError, match="make it with"):
        executable.load(tmp_path / "missing", KEY, lowered[0])
    (tmp_path / "other").write_text("words")
    with pytest.raises(InputError, match="no compiled program"):
        executable.load(tmp_path / "other", KEY, lowered[0])


def test_a_damaged_program_is_compiled_anew(lowered, tmp_path):
    executable.save(tmp_path / "step", lowered[0].compile(), KEY)
    content = (tmp_path / "step").read_bytes()
    (tmp_path / "step").write_bytes(content[: len(content) // 2])
    loaded, problem = executable.load(tmp_path / "step", KEY, lowered[0])
    assert loaded is None and "cannot be loaded" in problem
