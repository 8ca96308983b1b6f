"""Compiled Triton kernels are kept: with a library that only pretends to compile."""

import dataclasses
import errno
import types

import jax
import pytest

from ratjax_kernels import triton_cache


@dataclasses.dataclass
class Result:
    binary: str
    name: str
    shared_mem_bytes: int
    ttgir: str | None = None


class Module:
    """Intermediate code, which compiling changes."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


def library(**contents):
    module = types.ModuleType("triton_lib")
    vars(module).update(contents)
    return module


class Process:
    """A fresh process: its own library, the same disk."""

    def __init__(self):
        self.compiled = []
        self.library = library(compile_ttir_inplace=self.compile, CompilationResult=Result)
        triton_cache.keep_compiled(self.library)

    def compile(self, module, backend, options, capability, platform):
        self.compiled.append(str(module))
        code, module.text = f"{module} for {capability}, {options}", "changed"
        return Result(code, "kernel", 8)

    def __call__(self, code="code", options=("warps", 4), capability=90, platform="cuda"):
        return self.library.compile_ttir_inplace(Module(code), None, options, capability, platform)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(triton_cache, "_surroundings", lambda library: "triton 3.6")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "triton"
    jax.config.update("jax_compilation_cache_dir", before)


def test_another_process_finds_what_one_compiled(folder):
    first, second = Process(), Process()
    assert first() == second() == Result("code for 90, ('warps', 4)", "kernel", 8)
    assert (first.compiled, second.compiled) == (["code"], [])


def test_whatever_changes_the_machine_code_is_compiled_again(folder, monkeypatch):
    process = Process()
    process()
    for other in ({"code": "other"}, {"options": ("warps", 8)}, {"capability": 80}):
        before = len(process.compiled)
        assert process(**other) == process(**other)
        assert len(process.compiled) == before + 1, other
    monkeypatch.setattr(triton_cache, "_surroundings", lambda library: "triton 3.7")
    before = len(process.compiled)
    process()
    assert len(process.compiled) == before + 1


@pytest.mark.parametrize("left", ["", "{", "{}", '{"binary": "x", "other": 1}', "[1]"])
def test_a_damaged_file_is_written_again(folder, left):
    Process()()
    (file,) = folder.iterdir()
    whole = file.read_text()
    file.write_text(left)
    process = Process()
    assert process().name == "kernel" and process.compiled == ["code"]
    assert file.read_text() == whole and list(folder.iterdir()) == [file]


def test_without_a_folder_or_off_cuda_all_is_compiled(folder):
    process = Process()
    process(platform="rocm")
    process(platform="rocm")
    for nowhere in (None, "gs://bucket/cache"):
        jax.config.update("jax_compilation_cache_dir", nowhere)
        process()
    assert len(process.compiled) == 4 and not folder.exists()


def test_a_disk_that_takes_nothing_costs_only_time(folder):
    folder.write_text("a file where the folder would be")
    process = Process()
    assert process() == process()
    assert len(process.compiled) == 2


def test_a_disk_that_fills_up_keeps_nothing_half_written(folder, monkeypatch):
    def cut_short(path, text):
        with path.open("w") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", cut_short)
    assert Process()().name == "kernel"
    assert list(folder.iterdir()) == []


def test_a_library_of_another_shape_is_left_alone():
    other = library(CompilationResult=Result)
    triton_cache.keep_compiled(other)
    assert not hasattr(other, "compile_ttir_inplace")
