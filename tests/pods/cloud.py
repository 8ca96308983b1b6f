#!/usr/bin/env python3
"""Stands in for `gcloud`: a queue that grants at once, and hosts that are folders of this machine.

In the folder `$CLOUD`: `request` holds the state, `hosts` how many there are, `node` a slice's
state; `host-<n>` is the home directory of a host, whose name is `t1v-<n>`. `refuse` holds what to
say instead of creating. What is run over ssh is really run, by bash, with tools from `tools`.
`calls` lists the verbs.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(os.environ["CLOUD"])


def read(name: str, default: str = "") -> str:
    path = HERE / name
    return path.read_text() if path.exists() else default


def hosts() -> list[pathlib.Path]:
    found = [HERE / f"host-{number}" for number in range(int(read("hosts", "1")))]
    return [folder for folder in found if not (HERE / f"{folder.name}.down").exists()]


def create() -> int:
    if said := read("refuse"):
        print(said, file=sys.stderr)
        return 1
    (HERE / "request").write_text(read("granted", "ACTIVE"))
    (HERE / "node").write_text("READY")
    for number in range(int(read("hosts", "1"))):
        (HERE / f"host-{number}").mkdir()
        (HERE / f"host-{number}.down").unlink(missing_ok=True)
    return 0


def describe() -> int:
    state = read("request")
    if not state:
        print("ERROR: (gcloud.x) NOT_FOUND: no such resource", file=sys.stderr)
        return 1
    print(json.dumps({"name": "demo", "state": {"state": state}}))
    return 0


def delete() -> int:
    for folder in HERE.glob("host-*"):
        if folder.is_dir():
            shutil.rmtree(folder)
    (HERE / "request").unlink()
    return 0


def copy(source: str) -> int:
    for home in hosts():
        shutil.copytree(source, home / pathlib.Path(source).name, dirs_exist_ok=True)
    return 0


def ssh(command: str) -> int:
    codes = [0]
    for home in hosts():
        number = home.name.removeprefix("host-")
        tools = f"{HERE / 'tools'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(home), "PATH": tools, "HOST_NUMBER": number}
        done = subprocess.run(["bash", "-c", command], cwd=home, env=environment)
        codes.append(done.returncode)
    return max(codes)


def main(arguments: list[str]) -> int:
    verb = arguments[3] if arguments[2] == "queued-resources" else "node"
    with (HERE / "calls").open("a") as calls:
        calls.write(f"{verb}\n")
    match verb:
        case "node":
            print(read("node"))
            return 0
        case "scp":
            return copy(arguments[arguments.index("--recurse") + 1])
        case "ssh":
            return ssh(arguments[-1].removeprefix("--command="))
    return {"create": create, "describe": describe, "delete": delete}[verb]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
