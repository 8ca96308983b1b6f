"""The Dockerfile, which no test can build: that what it names exists, and what it promises."""

import pathlib
import re
import shlex
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in TEXT.splitlines()
    if line.strip() and not line.startswith("#")
]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def arguments(name):
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def copied():
    """What is copied into the image."""
    for rest in arguments("COPY"):
        *sources, _ = [word for word in shlex.split(rest) if not word.startswith("--")]
        yield from sources


def ignored(path):
    """Whether .dockerignore keeps a path of the root out: the last line that matches decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern == "*" or pathlib.PurePath(path).match(pattern):
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_exists_and_is_not_ignored():
    found = list(copied())
    assert {"pyproject.toml", "ratjax", "kernels", "launch", "experiments"} <= set(found)
    for path in found:
        assert (ROOT / path).exists(), path
        assert not ignored(path), path
    for path in (".git", ".venv", "runs", "data", "models", "tests"):
        assert ignored(path), path


def test_files_of_the_build_are_copied_before_the_first_install():
    """What pyproject.toml refers to: without them the install fails."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    before = TEXT[: TEXT.index("pip install")]
    for path in (project["readme"], *project["license-files"], "pyproject.toml"):
        assert path in before


def test_accelerators_are_extras():
    named = re.search(r"# (\w+) or (\w+): the extra of pyproject.toml", TEXT).groups()
    assert set(named) == {"tpu", "gpu"} <= EXTRAS.keys()
    assert "gcs" in EXTRAS and 'pip install ".[${ACCELERATOR},gcs]"' in TEXT
    assert "ACCELERATOR=tpu" in arguments("ARG")


def test_the_base_is_pinned_and_serves_the_project():
    (version,) = [a.split("=")[1] for a in arguments("ARG") if a.startswith("PYTHON=")]
    match = re.fullmatch(r"3\.(\d+)\.\d+-slim-\w+", version)
    assert match, "a release and a distribution, so that a rebuild is the same"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=3.11" and int(match[1]) >= 11
    assert arguments("FROM") == ["python:${PYTHON}"]


def test_nothing_is_installed_or_run_as_root():
    order = [name for name, _ in INSTRUCTIONS]
    user = order.index("USER")
    assert arguments("USER") == ["ratjax"]
    as_root = [rest for name, rest in INSTRUCTIONS[:user] if name == "RUN"]
    assert all("useradd" in rest and "pip" not in rest for rest in as_root)
    assert "CMD" in order[user:]


def test_commands_of_the_image_exist():
    (line,) = arguments("CMD")
    module = line.split('"-m", "')[1].split('"')[0]
    assert (ROOT / pathlib.Path(*module.split("."))).with_suffix(".py").exists()


def test_the_folder_is_where_hosts_mount_data():
    (workdir,) = arguments("WORKDIR")
    host = (ROOT / "launch" / "pods" / "host.sh").read_text()
    assert f":{workdir}/data" in host and f":{workdir}/models" in host
    assert "ENV RATJAX_REVISION=${REVISION}" in TEXT
