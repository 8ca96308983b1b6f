"""Keeps a run going: machines that were taken away are asked for again, programs started again.

Bounded: by restarts in all, by failures soon after a start, and by the time in the queue. It needs
a machine that stays up and is not the pod.
"""

import dataclasses
from collections.abc import Sequence

from launch.pods.execute import CommandFailed
from launch.pods.session import HostStatus, PodError, PodGone, Session
from launch.pods.states import ABSENT, Request


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
      restarts: how often the program is started again, whatever the reason.
      quick_failures: failures in a row, each within `quick_seconds` of a start.
      quick_seconds: see there.
      wait_hours: time in the queue.
      poll_seconds: between questions to the pod.
      unreachable: questions in a row that not all hosts answer, before the machines are given up.
    """

    restarts: int = 50
    quick_failures: int = 3
    quick_seconds: float = 600
    wait_hours: float = 24
    poll_seconds: float = 60
    unreachable: int = 5


def outcome(found: Sequence[HostStatus], hosts: int) -> str:
    """How a program is, from how it is on each host.

    Returns:
      `unreachable`, `none`, `running`, `finished`, `stopped`, `failed` or `refused`.
    """
    states = {status.state for status in found}
    if "refused" in states:  # the other hosts fail because this one has ended
        return "refused"
    if len(found) < hosts:
        return "unreachable"
    for state in ("failed", "none", "running", "stopped"):
        if state in states:
            return state
    return "finished"


def bring_up(session: Session, limits: Limits) -> None:
    """Does all that is missing until the program runs: request, wait, set-up, start.

    Raises:
      PodGone: the request was refused, or taken back.
      PodError: it was not granted in time.
      CommandFailed: a host or Google Cloud did not do what it was asked.
    """
    pod = session.pod
    if session.executor.dry:  # all that may have to be done is shown
        session.imagined = Request(ABSENT)
    found = session.request()
    if found.verdict == "ready" and not session.nodes_usable():
        session.executor.say(f"{pod.name}: the request is active, but slices are gone")
        found = Request("SUSPENDED")
    fresh = found.verdict == "gone"
    if fresh:
        session.executor.say(f"{pod.name}: {found}")
        if found.state != ABSENT:
            session.delete()
        session.create()
    if found.verdict != "ready":
        session.wait(limits.wait_hours, limits.poll_seconds)
    before = "none" if fresh else outcome(session.statuses(), pod.hosts)
    if before == "running":
        session.executor.say(f"{pod.name}: the program is running")
        return
    if fresh or before == "unreachable":
        session.setup()
    if before != "none":
        session.stop()  # on hosts that have not noticed the end yet
    session.start()


def watch(session: Session, limits: Limits) -> str:
    """Waits until the program is no longer running on all hosts.

    Returns:
      An outcome; `gone` where the machines were taken away.
    """
    silent = 0
    while True:
        session.sleep(limits.poll_seconds)
        statuses = session.statuses()
        found = outcome(statuses, session.pod.hosts)
        if found not in ("running", "unreachable"):
            codes = sorted({f"{s.state} {s.code}".strip() for s in statuses})
            session.executor.say(f"{session.pod.name}: {', '.join(codes)}")
            return found
        silent = silent + 1 if found == "unreachable" else 0
        if not silent:
            continue
        session.executor.say(
            f"{session.pod.name}: {len(statuses)} of {session.pod.hosts} hosts answer"
        )
        gone = session.request().verdict != "ready" or not session.nodes_usable()
        if gone or silent >= limits.unreachable:
            return "gone"


def babysit(session: Session, limits: Limits) -> str:
    """Brings the program up and keeps it going.

    Returns:
      `finished` or `refused`: how the program ended.

    Raises:
      PodError: given up.
    """
    name, quick, restarts = session.pod.name, 0, 0
    while True:
        start = session.clock()
        try:
            bring_up(session, limits)
            start = session.clock()
            found = watch(session, limits)
            if found == "gone" and session.request().verdict == "ready":
                session.delete()  # an active request whose machines are silent
        except (CommandFailed, PodGone) as error:
            session.executor.say(str(error))
            found = "failed"
        if found in ("finished", "refused"):
            return found
        ran = session.clock() - start
        quick = quick + 1 if found == "failed" and ran < limits.quick_seconds else 0
        if quick >= limits.quick_failures:
            raise PodError(
                f"{name}: failed {quick} times, each within {limits.quick_seconds:g} seconds; "
                "the log tells why"
            )
        restarts += 1
        if restarts > limits.restarts:
            raise PodError(f"{name}: started again {limits.restarts} times, which is the limit")
        session.executor.say(
            f"{name}: {found} after {ran / 60:.0f} minutes; restart {restarts} of {limits.restarts}"
        )
        if found == "failed":
            session.sleep(limits.poll_seconds)
