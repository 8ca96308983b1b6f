"""Released RAT+ files against RAT+ transcribed to PyTorch, and what is refused in them."""

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ratjax
from convert.measure_memory import ROOT
from ratjax.convert import convert, plan
from ratjax.errors import InputError
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated

torch = pytest.importorskip("torch")

from convert import ratplus_torch  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

# torch warns about its own future; that is not ours to mend.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

HEADS, WIDTH = 4, 32
PATTERNS = {
    "dense": ((1, 0, 0), Dense()),
    "d4": ((4, 0, 0), Dilated(4)),
    "d8_w3_i2": ((8, 3, 2), Dilated(8, 3, 2)),
    "local_only": ((-1, 5, 4), Dilated(-1, 5, 4)),
}


class EasyDict(dict):
    """As the `easydict` package has it: a dict whose entries are attributes too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__.update(self)


EasyDict.__module__ = "easydict"


@pytest.fixture
def easydict(monkeypatch):
    """Makes `easydict.EasyDict` picklable, as where the released files were written."""
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)


def run_config(heads=HEADS):
    return EasyDict(
        model=EasyDict(
            backbone=EasyDict(seq_cell=EasyDict(num_head=heads)),
            embedding=EasyDict(pe=EasyDict(_name_="rope", base=10000)),
        )
    )


def save_released(path, state, prefix="", config=True):
    """A file of the released trainer's form."""
    content = {"task": {prefix + n: t for n, t in state.items()}, "step": 7, "resume_kwargs": {}}
    content["optimizer"] = {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1}]}
    if config:
        content["config"] = run_config()
    torch.save(content, path)


@pytest.mark.parametrize("memory", [True, False], ids=["ratplus", "twin"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_ratplus_against_its_transcription(memory, pattern, tmp_path, easydict):
    state = ratplus_torch.random_state(WIDTH, 2, 48, apart=False, memory=memory)
    save_released(tmp_path / "model.pth", state)
    convert(tmp_path / "ours", plan(str(tmp_path / "model.pth")))
    model = ratjax.load(tmp_path / "ours")
    assert (model.config.memory is not None) == memory
    tokens = np.random.default_rng(3).integers(0, 48, 37)
    theirs, ours = pattern
    expected = ratplus_torch.logits(state, HEADS, tokens, theirs)
    np.testing.assert_allclose(model(tokens[None], ours)[0], expected, atol=1e-4, rtol=0)

    # Decode: teacher-forced from every prefix length, so that each step's logits are compared.
    prompt = 20
    padded = jnp.asarray(tokens[None, :prompt], jnp.int32)
    prefill = jax.jit(lambda t, n: model.prefill(t, n, ours, 20))
    decode = jax.jit(lambda t, s: model.decode(t, s, ours))
    logits, state_now, _ = prefill(padded, jnp.array([prompt], jnp.int32))
    np.testing.assert_allclose(logits[0], expected[prompt - 1], atol=1e-4, rtol=0)
    for i in range(prompt, len(tokens)):
        logits, state_now, _ = decode(jnp.asarray(tokens[None, i : i + 1], jnp.int32), state_now)
        np.testing.assert_allclose(logits[0], expected[i], atol=1e-4, rtol=0)

    found = model.generate(tokens[None], np.array([37]), max_new_tokens=24, pattern=ours)
    assert found[0].tolist() == ratplus_torch.greedy(state, HEADS, tokens, 24, theirs)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_both_layouts_and_compiled_names_make_the_same_model(prefix, tmp_path, easydict):
    apart = ratplus_torch.random_state(WIDTH, 2, 48, apart=True)
    merged = {}
    for name, value in apart.items():
        if "in_proj" in name:
            value = torch.cat([value, apart[name.replace("in_proj", "fgate_proj")]])
        if "fgate_proj" not in name:
            merged[name] = value
    found = []
    for kind, state in (("apart", apart), ("merged", merged)):
        save_released(tmp_path / f"{kind}.pth", state, prefix)
        planned = plan(str(tmp_path / f"{kind}.pth"))
        found.append((planned.model, planned.parts))
    assert found[0][0] == found[1][0]
    for name, part in found[0][1].items():
        everything = tuple(slice(None) for _ in part.shape)
        np.testing.assert_array_equal(part.read(everything), found[1][1][name].read(everything))


def test_heads_have_128_channels_where_the_file_does_not_tell(tmp_path):
    state = ratplus_torch.random_state(256, 1, 48, apart=True)
    save_released(tmp_path / "model.pth", state, config=False)
    model = plan(str(tmp_path / "model.pth")).model
    assert (model.num_heads, model.head_dim, model.rope_theta) == (2, 128, 10_000.0)
    assert plan(str(tmp_path / "model.pth"), head_dim=64).model.num_heads == 4


def test_the_command_converts_a_pth(tmp_path, easydict):
    """In a process of its own, where no `easydict` is installed or made up."""
    state = ratplus_torch.random_state(WIDTH, 1, 48, apart=True)
    save_released(tmp_path / "model.pth", state, prefix="_orig_mod.")
    command = [sys.executable, "-m", "launch.convert", f"--source={tmp_path / 'model.pth'}"]
    done = subprocess.run(
        [*command, f"--target={tmp_path / 'ours'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"warning: {tmp_path / 'model.pth'}: has no tokenizer.json; the model is converted "
        "without one"
    ]
    card = json.loads((tmp_path / "ours" / "model.json").read_text())
    assert card["provenance"]["format"] == "released RAT+"
    tokens = np.arange(9)
    expected = ratplus_torch.logits(state, HEADS, tokens)
    found = ratjax.load(tmp_path / "ours")(tokens[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_an_untied_head_is_kept(tmp_path, easydict):
    state = ratplus_torch.random_state(WIDTH, 1, 48, apart=False)
    state["head.lm_head.weight"] = 2 * state["embedding.wte.weight"]
    save_released(tmp_path / "model.pth", state)
    planned = plan(str(tmp_path / "model.pth"))
    assert not planned.model.tie_embeddings
    assert "head" in planned.parts


class Payload:
    """What unpickling must not run."""

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path("unpickled"),)


def test_nothing_in_a_pth_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"task": {"x": torch.ones(2)}, "config": Payload()}, "model.pth")
    with pytest.raises(
        InputError, match=r"model\.pth: holds more than tensors .*(getattr|pathlib)"
    ):
        plan("model.pth")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("backbone.ln.weight"), "missing tensor backbone.ln.weight"),
        (lambda s: s.update({"backbone.extra": torch.ones(1)}), "unknown tensor backbone.extra"),
        (lambda s: s.update({"_orig_mod.backbone.ln.weight": torch.ones(32)}), "doubled tensor"),
        (lambda s: s.update({"backbone.ln.weight": torch.ones(31)}), r"has shape \[31\]"),
        (
            lambda s: s.update({"backbone.layers.0.seq_layer.in_proj.weight": torch.ones(96, 32)}),
            "96 rows, neither 4 nor 5 times 32",
        ),
        (lambda s: s.pop("embedding.wte.weight"), "missing tensor embedding.wte.weight"),
    ],
)
def test_damaged_ratplus_files_are_refused(change, message, tmp_path, easydict):
    state = ratplus_torch.random_state(WIDTH, 2, 48, apart=False)
    change(state)
    save_released(tmp_path / "model.pth", state)
    with pytest.raises(InputError, match=message) as error:
        convert(tmp_path / "target", plan(str(tmp_path / "model.pth")))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "target").exists()


def test_a_truncated_pth_is_refused(tmp_path, easydict):
    save_released(tmp_path / "a.pth", ratplus_torch.random_state(WIDTH, 1, 48, apart=False))
    content = (tmp_path / "a.pth").read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "b.pth").write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"b\.pth: damaged") as error:
            plan(str(tmp_path / "b.pth"))
        assert "\n" not in str(error.value)
