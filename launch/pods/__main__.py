"""Rents TPU pods on Google Cloud, trains on them, and gives them back.

  python -m launch.pods create   --pod=a --topology=v5p:4x4x4 --zone=us-east5-a --project=p --spot
  python -m launch.pods setup    --pod=a ...     sends the code (what git has committed), installs
  python -m launch.pods run      --pod=a ... -- python -m launch.train --config=... --workdir=gs://...
  python -m launch.pods tail     --pod=a ...     follows the logs of all hosts
  python -m launch.pods status   --pod=a ...     the request, and the program on every host
  python -m launch.pods stop     --pod=a ...     has the program save and end
  python -m launch.pods resume   --pod=a ... -- python -m launch.train ...     does what is missing
  python -m launch.pods run --babysit --pod=a ... -- python -m launch.train ...  keeps it going
  python -m launch.pods delete   --pod=a ...     gives everything back
  python -m launch.pods list     --zone=... --project=...
  python -m launch.pods manifest ... --image=... -- python -m launch.train ...   a JobSet, for GKE
  python -m launch.pods xpk      ... --cluster=... --image=... -- python -m launch.train ...
  python -m launch.pods flags    --topology=...  what XLA and libtpu are told, and why

`--dry_run` prints every command and runs none. docs/launch.md tells how a run goes.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from absl import app

from launch import command
from launch.pods import gcloud, kubernetes
from launch.pods.babysit import babysit, bring_up, outcome
from launch.pods.execute import CommandFailed, Executor
from launch.pods.pod import check_program, check_zone, rented
from launch.pods.session import PodError, Session
from launch.pods.settings import define, job, limits, need, place, pod
from launch.pods.xla_flags import tpu_flags
from ratjax.errors import InputError, nearest


class Line(NamedTuple):
    """A command line: `launch.pods VERB --flags -- PROGRAM`."""

    verb: str
    flags: list[str]
    program: tuple[str, ...]


def split(argv: list[str]) -> Line:
    """The parts of a command line.

    Raises:
      InputError: no verb, or an unknown one.
    """
    rest = argv[1:]
    program: list[str] = []
    if "--" in rest:
        at = rest.index("--")
        rest, program = rest[:at], rest[at + 1 :]
    verbs = [word for word in rest[:1] if not word.startswith("-")]
    if not verbs and not any(re.match("--?help", word) for word in rest):
        raise InputError(f"say what to do: launch.pods {'|'.join(VERBS)}")
    if verbs and verbs[0] not in VERBS:
        raise InputError(f"{verbs[0]}: no such verb; {nearest(verbs[0], VERBS)}")
    return Line("".join(verbs), rest[len(verbs) :], tuple(program))


def session(program: tuple[str, ...], executor: Executor) -> Session:
    """The pod, its program and how commands are run."""
    pauses = {"sleep": lambda seconds: None} if executor.dry else {}
    return Session(pod(), job(program), executor, **pauses)


def do_create(line: Line, executor: Executor) -> int:
    made = session(line.program, executor)
    made.create()
    made.wait(command.FLAGS.wait_hours, command.FLAGS.poll_seconds)
    return 0


def do_setup(line: Line, executor: Executor) -> int:
    session(line.program, executor).setup()
    return 0


def do_run(line: Line, executor: Executor) -> int:
    check_program(pod(), line.program)
    made = session(line.program, executor)
    if not command.FLAGS.babysit:
        made.start()
        return 0
    try:
        ended = babysit(made, limits())
        executor.say(f"{made.pod.name}: {ended}")
        return 0 if ended == "finished" else 1
    finally:
        if command.FLAGS.delete_at_end and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            executor.say(f"{made.pod.name}: giving it back (--nodelete_at_end keeps it)")
            made.delete()


def do_resume(line: Line, executor: Executor) -> int:
    check_program(pod(), line.program)
    bring_up(session(line.program, executor), limits())
    return 0


def do_tail(line: Line, executor: Executor) -> int:
    follow = gcloud.on_hosts(place(), gcloud.host("tail", "50"), more=("--batch-size=all",))
    executor.run(follow, shown=True)
    return 0


def do_status(line: Line, executor: Executor) -> int:
    made = session((), executor)
    executor.say(f"{made.pod.name}: {made.request()}")
    found = made.statuses()
    for status in found:
        executor.say(f"{status.host}: {status.state} {status.code}".rstrip())
    answers = f"{len(found)} of {made.pod.hosts} hosts answer"
    executor.say(f"{made.pod.name}: {outcome(found, made.pod.hosts)}; {answers}")
    return 0


def do_stop(line: Line, executor: Executor) -> int:
    words = gcloud.host("stop", str(command.FLAGS.grace))
    executor.run(gcloud.on_hosts(place(), words), shown=True)
    return 0


def do_delete(line: Line, executor: Executor) -> int:
    executor.run(gcloud.delete(place()), shown=True)
    executor.say("nodes and request are gone; buckets stay, and cost, until they are emptied")
    return 0


def do_list(line: Line, executor: Executor) -> int:
    zone, project = need("zone", "project")
    check_zone(zone, project)
    executor.run(gcloud.list_all(zone, project), shown=True)
    return 0


def do_manifest(line: Line, executor: Executor) -> int:
    given, made = command.FLAGS, pod()
    check_program(made, line.program)
    manifest = kubernetes.job_set(made, given.image, line.program, given.max_restarts, given.grace)
    print(json.dumps(manifest, indent=2))
    return 0


def do_xpk(line: Line, executor: Executor) -> int:
    given, made = command.FLAGS, pod()
    check_program(made, line.program)
    executor.run(
        kubernetes.xpk(made, given.cluster, given.image, line.program, given.max_restarts),
        shown=True,
    )
    return 0


def do_flags(line: Line, executor: Executor) -> int:
    (topology,) = need("topology")
    for flag in tpu_flags(rented(topology).chip.name, command.FLAGS.slices):
        print(f"{flag}\n  {flag.reason} ({flag.source}; {flag.date})")
    return 0


VERBS: dict[str, Callable[[Line, Executor], int]] = {
    name.removeprefix("do_"): function
    for name, function in list(globals().items())
    if name.startswith("do_")
}


def act(line: Line) -> int:
    """Does what a command line says; returns the exit status."""
    dry = command.FLAGS.dry_run
    executor = Executor(dry)
    try:
        status = VERBS[line.verb](line, executor)
    except (CommandFailed, PodError) as error:
        return command.fail(error, status=1)
    except KeyboardInterrupt:
        return command.fail(
            "interrupted; what runs on the pod goes on, and is paid for", command.INTERRUPTED
        )
    if dry and line.verb not in ("manifest", "flags"):
        command.conclude({"verb": line.verb, "pod": command.FLAGS.pod, "commands": executor.count})
    return status


def main() -> None:
    try:
        line = split(sys.argv)
    except InputError as error:
        sys.exit(command.fail(error))
    define()
    app.run(
        lambda rest: command.guarded(lambda: act(line), rest),
        argv=[sys.argv[0], *line.flags],
        flags_parser=command.parse,
    )


if __name__ == "__main__":
    main()
