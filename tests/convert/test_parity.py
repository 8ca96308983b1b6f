"""Live parity with transformers, and with RAT+ transcribed to PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ratjax
from ratjax.convert import convert, export, plan
from ratjax.errors import InputError
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from convert import ratplus_torch  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

# torch and transformers warn about their own future; that is not ours to mend.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

# (hidden, layers, heads, kv heads, intermediate, vocab, tied): MHA, GQA, MQA, 32B's 5:1.
SHAPES = {
    "mha": (64, 2, 4, 4, 96, 101, False),
    "gqa": (96, 3, 6, 2, 160, 128, False),
    "mqa_tied": (64, 2, 4, 1, 64, 80, True),
    "five_to_one": (80, 2, 10, 2, 96, 64, False),
}
# Bucketed compilation is not at stake here: each length is one program. 1 to 512, the edges
# of powers of two among them.
LENGTHS = {"gqa": (1, 2, 3, 17, 64, 127, 128, 511, 512), "mha": (1, 512)}


def random_olmo2(shape, theta=500_000.0):
    hidden, layers, heads, kv_heads, intermediate, vocab, tied = shape
    torch.manual_seed(1)
    config = transformers.Olmo2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": theta, "rope_type": "default"},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.Olmo2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a norm that is misplaced
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request, tmp_path_factory):
    """(name, the PyTorch model, its folder, our folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = random_olmo2(SHAPES[request.param])
    theirs.save_pretrained(folder / "hf", max_shard_size="100KB")
    convert(folder / "ours", plan(str(folder / "hf")))
    return request.param, theirs, folder / "hf", folder / "ours"


def test_logits(pair):
    name, theirs, _, folder = pair
    ours = ratjax.load(folder)
    for length in LENGTHS.get(name, (40,)):
        tokens = np.random.default_rng(length).integers(0, ours.config.vocab_size, (2, length))
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens)).logits.numpy()
        # The bound the project promises; measured: 1e-5 at logits of order 10.
        np.testing.assert_allclose(ours(tokens), expected, atol=1e-4, rtol=0)


def test_greedy_continuations(pair):
    _, theirs, _, folder = pair
    ours = ratjax.load(folder)
    tokens = np.random.default_rng(5).integers(0, ours.config.vocab_size, (2, 19))
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(tokens),
            attention_mask=torch.ones(2, 19, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=64,
        )[:, 19:]
    found = ours.generate(tokens, np.array([19, 19]), max_new_tokens=64)
    np.testing.assert_array_equal(found, expected.numpy())


def test_transformers_loads_what_is_exported_bit_for_bit(pair, tmp_path):
    _, theirs, _, folder = pair
    export(folder, tmp_path / "hf")
    back = transformers.Olmo2ForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    expected, found = theirs.state_dict(), back.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name]), name
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, back(tokens).logits)


def test_transformers_loads_an_export_with_memory_and_ignores_the_memory(pair, tmp_path):
    _, theirs, source, _ = pair
    convert(tmp_path / "ours", plan(str(source), add_memory="near_identity"))
    export(tmp_path / "ours", tmp_path / "hf")
    back, info = transformers.Olmo2ForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, back.state_dict()[name])
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["ratjax_memory"]


def test_bfloat16_weights_of_transformers(tmp_path):
    theirs = random_olmo2(SHAPES["gqa"]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "ours", plan(str(tmp_path / "hf")))
    tokens = np.arange(30)[None]
    # Loaded anew: `.float()` would keep RoPE's frequencies as bfloat16 had rounded them.
    theirs = transformers.Olmo2ForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    found = ratjax.load(tmp_path / "ours", dtype="float32")(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


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
    import sys
    import types

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
