"""The shape of the repository: imports run downwards, files stay small, nothing leaks."""

import ast
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# From the top floor down. A room imports from itself and from rooms below it; rooms on one
# line do not know each other.
FLOORS = [
    ("launch",),
    ("experiments",),
    ("ratjax.needle",),
    ("ratjax.ahead",),
    ("ratjax.train",),
    ("ratjax.convert",),
    ("ratjax.data",),
    ("ratjax.model",),
    ("ratjax.sparsity",),
    ("ratjax.sharding",),
    ("ratjax.config",),
    ("ratjax.files", "ratjax.provenance"),
    ("ratjax.errors", "ratjax.shapes"),
    ("ratjax_kernels",),
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return next((r for r in (".".join(parts[:2]), parts[0]) if r in LEVEL), None)


def tracked(suffix: str) -> list[pathlib.Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", f"*{suffix}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def module_name(path: pathlib.Path) -> str:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "kernels":
        relative = path.relative_to(ROOT / "kernels")
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_imports_run_downwards():
    wrong = []
    for path in tracked(".py"):
        here = room_of(module_name(path))
        if here is None or path.is_relative_to(ROOT / "tests"):
            continue
        for target in map(room_of, imports(path)):
            if target and target != here and LEVEL[target] <= LEVEL[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong


def test_files_are_small():
    sizes = {p: len(p.read_text().splitlines()) for p in tracked(".py")}
    assert not [str(p) for p, n in sizes.items() if n > 600]
    package = sorted(n for p, n in sizes.items() if p.parts[-2] != "tests" and n > 5)
    assert package[len(package) // 2] <= 170


@pytest.mark.parametrize("word", ["/work" + "/", "/root" + "/", "python" + "hosted"])
def test_no_paths_of_a_machine(word):
    found = subprocess.run(["git", "grep", "-lI", word], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == ""
