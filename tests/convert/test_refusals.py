"""What a conversion refuses: one line that names it, and no target folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from convert.checkpoints import write_olmo2
from ratjax.config.presets import preset
from ratjax.convert import convert, export, plan
from ratjax.convert.safetensors_file import read_header, write_file
from ratjax.convert.source import NotHereError, find
from ratjax.errors import ConfigError, InputError
from tests.decoders import initial

ROOT = pathlib.Path(__file__).parents[2]
TINY = preset("tiny")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An OLMo2 folder in three files, with a tokenizer, that nothing is wrong with."""
    folder = write_olmo2(tmp_path_factory.mktemp("sound") / "hf", TINY, files=3)
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(500)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def source(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "hf")


def rewrite(file: pathlib.Path, change) -> None:
    """Applies `change` to {name: array} of a safetensors file."""
    arrays = {name: np.array(tensor.view()) for name, tensor in read_header(file).items()}
    change(arrays)
    shapes = {name: (array.shape, "F32") for name, array in arrays.items()}
    write_file(file, shapes, arrays.values(), {})


def edit(path: pathlib.Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def set_fields(**fields):
    return lambda folder: edit(folder / "config.json", lambda c: c.update(fields))


def drop_field(name):
    return lambda folder: edit(folder / "config.json", lambda c: c.pop(name))


def truncate(folder):
    os.truncate(first(folder), first(folder).stat().st_size - 1)


def cut_header(folder):
    os.truncate(first(folder), 100)


def doubled_in_two_files(folder):
    one, two, _ = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(read_header(one).items()))
    value = np.array(tensor.view())
    rewrite(two, lambda arrays: arrays.update({name: value}))


def doubled_in_one_header(folder):
    content = first(folder).read_bytes()
    names = list(read_header(first(folder)))[1:3]
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(f'"{names[1]}"'.encode(), f'"{names[0]}"'.encode())
    head = len(header).to_bytes(8, "little") + header
    first(folder).write_bytes(head + content[8 + length :])


def other_tokenizer(size):
    def change(folder):
        words = tokenizers.models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
        tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))

    return change


def with_gap(folder):
    words = tokenizers.models.WordLevel({"a": 0, "b": TINY.vocab_size}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))


def eos_beyond_the_tokenizer(folder):
    set_fields(eos_token_id=505)(folder)


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
REFUSALS = {
    "unknown": (
        lambda f: rewrite(first(f), lambda a: a.update({"model.extra": np.ones(2, np.float32)})),
        "unknown tensor model.extra",
    ),
    "misspelt": (
        lambda f: (
            rewrite(
                first(f), lambda a: a.update({"model.norm.wieght": a.pop("model.norm.weight")})
            ),
            edit(f / INDEX, lambda c: c["weight_map"].pop("model.norm.weight")),
        ),
        "unknown tensor model.norm.wieght; did you mean model.norm.weight",
    ),
    "missing": (
        lambda f: (
            rewrite(first(f), lambda a: a.pop(Q_PROJ)),
            edit(f / INDEX, lambda c: c["weight_map"].pop(Q_PROJ)),
        ),
        f"missing tensor {Q_PROJ}",
    ),
    "not_in_its_file": (
        lambda f: rewrite(first(f), lambda a: a.pop(Q_PROJ)),
        f"has {Q_PROJ} in model-00001-of-00003.safetensors, which does not hold it",
    ),
    "doubled": (doubled_in_two_files, "doubled tensor model.embed_tokens.weight"),
    "doubled_in_header": (doubled_in_one_header, "doubled in the header: model.norm.weight"),
    "mis_shaped": (
        lambda f: rewrite(first(f), lambda a: a.update({Q_PROJ: a[Q_PROJ][:-1]})),
        rf"{Q_PROJ} has shape \[63, 64\], by the config it is \[64, 64\]",
    ),
    "transposed": (set_fields(intermediate_size=64), r"has shape \[128, 64\], by the config"),
    "truncated": (truncate, "truncated: has"),
    "header_cut": (cut_header, "truncated, or no safetensors file"),
    "missing_file": (
        lambda f: first(f).unlink(),
        "points at model-00001-of-00003.safetensors, which is missing",
    ),
    "index_outside": (
        lambda f: edit(f / INDEX, lambda c: c["weight_map"].update({Q_PROJ: "../x.safetensors"})),
        "points outside of its folder",
    ),
    "no_weights": (
        lambda f: [p.unlink() for p in (*f.glob("*.safetensors"), f / INDEX)],
        "has neither model.safetensors nor",
    ),
    "architecture": (set_fields(model_type="llama"), "model_type='llama'; only 'olmo2'"),
    "no_config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken_config": (
        lambda f: (f / "config.json").write_text("{"),
        r"config.json: not readable as JSON",
    ),
    "field_missing": (drop_field("hidden_size"), "config.json: has no field 'hidden_size'"),
    "field_type": (set_fields(vocab_size="many"), "vocab_size='many': must be of type int"),
    "scaled_rope": (
        set_fields(rope_parameters={"rope_theta": 1e4, "rope_type": "yarn"}),
        "rope_type='yarn'",
    ),
    "two_thetas": (set_fields(rope_theta=2.0), "two values of rope_theta"),
    "no_theta": (
        lambda f: (drop_field("rope_theta")(f), drop_field("rope_parameters")(f)),
        "no rope_theta",
    ),
    "biases": (set_fields(attention_bias=True), "attention_bias=True: must be False"),
    "activation": (set_fields(hidden_act="gelu"), "hidden_act='gelu': must be 'silu'"),
    "tokenizer_too_large": (other_tokenizer(513), "less than the 513 tokens of"),
    "tokenizer_with_a_gap": (with_gap, "less than the 513 tokens of"),
    "tokenizer_of_another": (eos_beyond_the_tokenizer, "has no token 505, the config's eos_token"),
    "tokenizer_broken": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "not readable as a tokenizer",
    ),
}


# `launch.convert` on one command line after the other, as if each were a process of its own,
# without importing everything each time. `free`: how much space disks claim to have.
COMMANDS = """
import contextlib, io, json, shutil, sys, types
from absl.testing import flagsaver
from launch import command, convert
usage = shutil.disk_usage
for line in sys.stdin:
    sys.argv, free = json.loads(line)
    shutil.disk_usage = usage if free is None else lambda _: types.SimpleNamespace(free=free)
    out, err = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command.run(convert.main)
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def command():
    """Runs the command: (exit status, stdout, stderr)."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*arguments, free=None):
        child.stdin.write(json.dumps([["convert", *map(str, arguments)], free]) + "\n")
        child.stdin.flush()
        return tuple(json.loads(child.stdout.readline()))

    with child:
        yield run


def assert_refused(result, message: str) -> None:
    status, out, err = result
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert re.search(message, err), err
    assert not out


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS)
def test_unsound_sources(change, message, source, tmp_path, command):
    change(source)
    assert_refused(command(f"--source={source}", f"--target={tmp_path / 'target'}"), message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_the_sound_source_is_read(sound):
    assert plan(str(sound)).parameters == sum(
        int(np.prod(tensor.shape))
        for file in sound.glob("*.safetensors")
        for tensor in read_header(file).values()
    )


def test_a_target_that_is_not_empty(sound, tmp_path, command):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").touch()
    (tmp_path / "file").touch()
    for target in ("target", "file"):
        arguments = (f"--source={sound}", f"--target={tmp_path / target}")
        assert_refused(command(*arguments), f"{target}: exists and is not empty")
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["mine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "target"]


def test_too_little_space(sound, tmp_path, command):
    arguments = (f"--source={sound}", f"--target={tmp_path / 'target'}")
    assert_refused(command(*arguments, free=10**6), r"needs 0\.1 GB, .* has 0\.0 GB free")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_it_is_written(tmp_path):
    """Files may not grow beyond 100 kB here: what writing to a full disk looks like."""
    source = write_olmo2(tmp_path / "hf", TINY)
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5));"
        "sys.argv[0] = 'convert'; runpy.run_module('launch.convert', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, f"--source={source}", f"--target={tmp_path / 'target'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_pth_where_torch_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "model.pth").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"install torch, .* '\.\[parity\]'"):
        plan(str(tmp_path / "model.pth"))


def test_quantised_weights(tmp_path):
    folder = write_olmo2(tmp_path / "hf", TINY)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content.replace(b'"F32"', b'"I32"'))
    with pytest.raises(InputError, match="stored as I32; readable are F32, F16, BF16"):
        plan(str(folder))


def test_a_memory_on_top_of_a_memory(sound, tmp_path):
    convert(tmp_path / "ours", plan(str(sound), add_memory="near_identity"))
    export(tmp_path / "ours", tmp_path / "hf")
    with pytest.raises(InputError, match="has a memory already"):
        plan(str(tmp_path / "hf"), add_memory="ratplus")


def test_unknown_choices(sound):
    with pytest.raises(ConfigError, match="add_memory='other': must be one of"):
        plan(str(sound), add_memory="other")
    with pytest.raises(ConfigError, match="dtype='int8': must be one of"):
        plan(str(sound), dtype="int8")


def test_models_that_are_no_olmo2_are_not_exported(tmp_path):
    import dataclasses

    from ratjax.model.checkpoint import save_model

    config = dataclasses.replace(TINY, norm="pre")
    model = initial(config)
    save_model(tmp_path / "ours", model, None, {})
    with pytest.raises(ConfigError, match=r"model\.norm='pre': OLMo2 has 'post'"):
        export(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotHereError, match="no such folder or file, and no repository id"):
        find(str(tmp_path / "nowhere" / "deep"))
    with pytest.raises(NotHereError, match="allenai/no-such-model: not in the hub's cache"):
        find("allenai/no-such-model", fetch=False)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="is a file; give its folder"):
        find(str(tmp_path / "notes.txt"))
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"name one of its files with --file: a\.pth, b\.pth"):
        find(str(tmp_path))
    assert find(str(tmp_path), file="b.pth").is_pth


def test_a_repository_in_the_cache_needs_no_network(sound, tmp_path, monkeypatch):
    """A hub cache as `huggingface_hub` lays it out; the revision is the snapshot's commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--allenai--made-up"
    shutil.copytree(sound, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    planned = plan(find("allenai/made-up", fetch=False))
    assert planned.provenance["source"] == "allenai/made-up"
    assert planned.provenance["revision"] == commit


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.convert", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    )


def test_the_command_refuses_in_one_line(source, tmp_path):
    truncate(source)
    done = run(f"--source={source}", f"--target={tmp_path / 'target'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "target").exists()


def test_the_command_rehearses_and_converts(sound, tmp_path):
    source = shutil.copytree(sound, tmp_path / "hf")
    (source / "tokenizer.json").unlink()
    target = tmp_path / "target"
    done = run(f"--source={source}", f"--target={target}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "has no tokenizer.json" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["parameters"] > 0
    assert not target.exists()

    done = run(f"--source={source}", f"--target={target}", "--add_memory=ratplus")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: ") and done.stderr.count("\n") == 1
    card = json.loads((target / "model.json").read_text())
    assert card["provenance"]["add_memory"] == "ratplus"

    done = run("--export", f"--source={target}", f"--target={tmp_path / 'back'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back" / "ratjax_memory.safetensors").exists()

    missing = run("--source=allenai/nothing", f"--target={tmp_path / 'x'}", "--dry_run")
    assert missing.returncode == 0
    assert missing.stderr.startswith("warning: allenai/nothing: not in the hub's cache")
