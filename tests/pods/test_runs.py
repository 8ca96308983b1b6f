"""Whole runs on a made-up cloud whose hosts are folders; host.sh and its programs really run."""

import contextlib
import itertools
import os
import pathlib
import signal
import sys
import tarfile
import textwrap
import time

import pytest

from launch.pods import gcloud
from launch.pods import session as session_module
from launch.pods.babysit import Limits, babysit, bring_up, outcome
from launch.pods.execute import Executor
from launch.pods.pod import Pod, rented
from launch.pods.session import HostStatus, Job, PodError, Session, constraints
from launch.pods.states import REQUEST, Request

ROOT = pathlib.Path(__file__).parents[2]
HOSTS = 2  # v5p:2x2x2
# uv makes an environment whose python is this one.
UV = """\
#!/bin/bash
case "$1 $2" in
  "--version ") echo "uv 0.11.2" ;;
  "venv --quiet") mkdir -p venv/bin && ln -s {python} venv/bin/python ;;
  "pip install") echo "$PWD: $*" >> "$CLOUD/installed" ;;
  *) exit 9 ;;
esac
"""


@pytest.fixture
def cloud(path, tmp_path, monkeypatch):
    """The folder of a cloud with two hosts."""
    folder = tmp_path / "cloud"
    (folder / "tools").mkdir(parents=True)
    (folder / "hosts").write_text(str(HOSTS))
    monkeypatch.setenv("CLOUD", str(folder))
    script = pathlib.Path(__file__).parent / "cloud.py"
    path("gcloud", f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
    for name, text in {
        "hostname": '#!/bin/sh\necho "t1v-$HOST_NUMBER"\n',
        "uv": UV.format(python=sys.executable),
    }.items():
        tool = folder / "tools" / name
        tool.write_text(text)
        tool.chmod(0o755)
    monkeypatch.setattr(session_module, "STAGING", tmp_path / "staging")
    return folder


@pytest.fixture
def made(cloud, tmp_path):
    """Makes a session for a program in Python; its files are in the folder `shared`."""
    sessions = []

    def make(text="print('trained 3 steps')", **changes):
        program = tmp_path / "program.py"
        shared = tmp_path / "shared"
        shared.mkdir(exist_ok=True)
        header = f"import os, pathlib, signal, sys, time\nshared = pathlib.Path({str(shared)!r})\n"
        program.write_text(header + textwrap.dedent(text))
        topology = rented("v5p:2x2x2")
        pod = Pod(name="demo", zone="us-east5-a", project="lab", topology=topology, spot=True)
        job = Job(program=("python", str(program)), grace=5, revision="0123abc", **changes)
        sessions.append(Session(pod, job, Executor(), sleep=lambda seconds: time.sleep(0.05)))
        return sessions[-1]

    yield make
    for host in cloud.glob("host-*/ratjax"):  # leave nothing running
        if (host / "pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int((host / "pid").read_text()), signal.SIGKILL)


def calls(cloud):
    """The commands that were given, without the questions."""
    given = (cloud / "calls").read_text().split()
    return [verb for verb, _ in itertools.groupby(given) if verb in ("create", "delete", "scp")]


def until(session, *wanted, seconds=60.0):
    """Waits for an outcome."""
    end = time.monotonic() + seconds
    while (found := outcome(session.statuses(), HOSTS)) not in wanted:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def log(cloud, host=0):
    return (cloud / f"host-{host}" / "ratjax" / "run.log").read_text()


LIMITS = Limits(poll_seconds=0, quick_seconds=600, restarts=6, unreachable=2)


def test_from_nothing_to_the_end(cloud, made, capsys):
    session = made(
        """
        print("tokens here:", pathlib.Path("data").is_dir(), pathlib.Path("README.md").is_file())
        print(os.environ["LIBTPU_INIT_ARGS"], os.environ["RATJAX_REVISION"])
        print("trained 3 steps")
        """
    )
    assert babysit(session, LIMITS) == "finished"
    assert calls(cloud) == ["create", "scp"]
    for host in range(HOSTS):
        assert log(cloud, host).splitlines() == [
            "tokens here: True True",
            "--xla_tpu_scoped_vmem_limit_kib=50000 0123abc",
            "trained 3 steps",
        ]
    installed = (cloud / "installed").read_text().splitlines()
    first = f"{cloud}/host-0/ratjax: pip install --quiet --python venv/bin/python --constraint"
    assert len(installed) == 2 * HOSTS
    assert installed[0] == f"{first} constraints.txt -e ./source[tpu]"
    pinned = (cloud / "host-1" / "ratjax" / "constraints.txt").read_text()
    assert pinned == constraints() and "\njax==" in pinned and "ratjax==" not in pinned
    printed = capsys.readouterr().out
    assert "demo: ABSENT: there is no such request" in printed
    assert "demo: ACTIVE: the machines are there" in printed and "demo: finished 0" in printed


@pytest.mark.slow
def test_what_is_sent_is_what_git_has(cloud, made):
    session = made()
    session.create()
    session.setup()
    source = cloud / "host-0" / "ratjax" / "source"
    assert (source / "launch" / "train.py").exists() and not (source / ".git").exists()
    with tarfile.open(cloud / "host-0" / "ratjax" / "source.tar.gz") as archive:
        assert "pyproject.toml" in archive.getnames()
    # what hosts have fetched outlives new code
    (cloud / "host-0" / "ratjax" / "shared" / "data" / "tokens").write_text("1 2 3")
    session.setup()
    assert (source / "data" / "tokens").read_text() == "1 2 3"


def test_a_preempted_pod_is_replaced_and_goes_on(cloud, made):
    """The bucket is the folder `shared`: the program goes on from what it finds there."""
    session = made(
        """
        step = shared / f"step-{os.environ['HOST_NUMBER']}"
        at = int(step.read_text()) if step.exists() else 0
        for at in range(at + 1, 4):
            step.write_text(str(at))
            print("step", at, flush=True)
            while at == 2 and not (shared / "go").exists():
                time.sleep(0.02)
        print("trained 3 steps")
        """
    )
    shared = made_shared(session)

    def preempt(_):
        time.sleep(0.05)
        steps = [(shared / f"step-{host}") for host in range(HOSTS)]
        if (shared / "go").exists() or not all(s.exists() and s.read_text() == "2" for s in steps):
            return
        for host in range(HOSTS):
            pid = cloud / f"host-{host}" / "ratjax" / "pid"
            os.killpg(int(pid.read_text()), signal.SIGKILL)
            (cloud / f"host-{host}.down").touch()
        (cloud / "node").write_text("PREEMPTED")
        (shared / "go").touch()

    session.sleep = preempt
    assert babysit(session, LIMITS) == "finished"
    assert calls(cloud) == ["create", "scp", "delete", "create", "scp"]
    assert log(cloud).splitlines() == ["step 3", "trained 3 steps"]


def made_shared(session):
    return pathlib.Path(session.job.program[1]).parent / "shared"


def test_a_signal_is_not_the_end(cloud, made):
    """A program that was stopped and has saved ends with 0; it is started again."""
    session = made(
        """
        if (shared / f"saved-{os.environ['HOST_NUMBER']}").exists():
            print("trained 3 steps")
            sys.exit(0)
        def save(*_):
            (shared / f"saved-{os.environ['HOST_NUMBER']}").touch()
            print("runs/a: stopped by a signal; the same command resumes it")
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    bring_up(session, LIMITS)
    until(session, "running")
    while not all("ready" in log(cloud, host) for host in range(HOSTS)):
        time.sleep(0.02)
    bring_up(session, LIMITS)  # is running: nothing to do
    session.stop()
    assert {(s.state, s.code) for s in session.statuses()} == {("stopped", "0")}
    bring_up(session, LIMITS)
    assert until(session, "finished") == "finished"
    assert calls(cloud) == ["create", "scp"]
    # the earlier log is kept
    assert len(list((cloud / "host-0" / "ratjax").glob("run.*.log"))) == 1


@pytest.mark.slow
def test_a_program_that_ignores_the_signal_is_ended(cloud, made):
    session = made(
        "signal.signal(signal.SIGTERM, lambda *_: None)\nprint(1)\nwhile True: time.sleep(1)"
    )
    session.job = session_module.dataclasses.replace(session.job, grace=1)
    bring_up(session, LIMITS)
    until(session, "running")
    session.stop()
    assert {(s.state, s.code) for s in session.statuses()} == {("failed", "137")}


@pytest.mark.slow
def test_one_host_that_fails_restarts_all(cloud, made):
    session = made(
        """
        once = shared / "failed-once"
        if os.environ["HOST_NUMBER"] == "1" and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        while not once.exists():
            time.sleep(0.02)
        if len(list(shared.glob("start-*"))) < 2:
            (shared / f"start-{os.getpid()}").touch()
            time.sleep(60)
        print("trained 3 steps")
        """
    )
    (made_shared(session) / "start-x").touch()
    assert babysit(session, LIMITS) == "finished"
    assert calls(cloud) == ["create", "scp"]


def test_a_host_that_has_lost_another_is_no_refusal(cloud, made, capsys):
    session = made(
        """
        once = shared / "lost-once"
        if os.environ["HOST_NUMBER"] == "1" and not once.exists():
            once.touch()
            print("error: process 1 of 2: another process has ended", file=sys.stderr)
            sys.exit(4)
        while not once.exists():
            time.sleep(0.02)
        print("trained 3 steps")
        """
    )
    assert babysit(session, LIMITS) == "finished"
    printed = capsys.readouterr().out
    assert "demo: failed 4" in printed and "refused" not in printed


def test_what_is_refused_is_not_tried_again(cloud, made, capsys):
    session = made("print('error: mesh.fsdp=3: must divide', file=sys.stderr); sys.exit(2)")
    assert babysit(session, LIMITS) == "refused"
    assert "demo: refused 2" in capsys.readouterr().out
    assert (cloud / "calls").read_text().split().count("create") == 1


@pytest.mark.slow
def test_a_program_that_always_fails_is_given_up(cloud, made):
    session = made("raise RuntimeError('broken')")
    with pytest.raises(PodError, match="failed 3 times, each within 600 seconds"):
        babysit(session, LIMITS)


@pytest.mark.slow
def test_restarts_are_limited(cloud, made):
    session = made("print('x: stopped by a signal'); sys.exit(0)")
    with pytest.raises(PodError, match="started again 2 times, which is the limit"):
        babysit(session, Limits(poll_seconds=0, restarts=2))


def test_a_request_that_is_refused_is_given_up(cloud, made, capsys):
    (cloud / "refuse").write_text("ERROR: (gcloud.x) PERMISSION_DENIED: no")
    session = made()
    with pytest.raises(PodError, match="failed 3 times"):
        babysit(session, LIMITS)
    assert "PERMISSION_DENIED: no" in capsys.readouterr().out


def test_waiting_ends(cloud, made, capsys):
    (cloud / "granted").write_text("WAITING_FOR_RESOURCES")
    session = made()
    session.create()
    times = iter(range(0, 10**6, 1800))
    session.clock = lambda: next(times)
    with pytest.raises(PodError, match="still WAITING_FOR_RESOURCES after 2 hours"):
        session.wait(2, 60)
    printed = capsys.readouterr().out
    # said once, though asked several times
    assert printed.count("WAITING_FOR_RESOURCES: the request is in the queue") == 1


@pytest.mark.slow
def test_silent_hosts_of_an_active_request_are_replaced(cloud, made):
    session = made("while not (shared / 'go').exists(): time.sleep(0.02)\nprint('trained')")
    bring_up(session, LIMITS)
    until(session, "running")
    (cloud / "host-1.down").touch()

    def heal(_):
        if not (cloud / "host-1").exists() or not (cloud / "host-1.down").exists():
            (made_shared(session) / "go").touch()
        time.sleep(0.05)

    session.sleep = heal
    assert babysit(session, LIMITS) == "finished"
    assert "delete" in calls(cloud)


@pytest.mark.slow
def test_a_second_start_is_refused(cloud, made, pods):
    session = made("time.sleep(60)")
    bring_up(session, LIMITS)
    until(session, "running")
    where = ("--pod=demo", "--zone=us-east5-a", "--project=lab", "--topology=v5p:2x2x2")
    status, _, err = pods("run", *where, "--", "true")
    assert status == 1 and "ended with 3" in err[-1]
    assert until(session, "running") == "running"


def test_following_ends_with_the_program(cloud, made):
    session = made("print('one', flush=True); time.sleep(0.5); print('two')")
    bring_up(session, LIMITS)
    words = ("timeout", "60", "bash", "ratjax/host.sh", "tail", "10")
    done = session.executor.run(gcloud.on_hosts(session.pod, words))
    assert [f"t1v-{h} | {word}" for h in range(HOSTS) for word in ("one", "two")] == [
        line for line in done.out.splitlines() if " | " in line
    ]


def test_logs_are_copied_to_the_bucket(cloud, made):
    tool = cloud / "tools" / "gcloud"
    tool.write_text('#!/bin/sh\n[ "$1 $2" = "storage cp" ] && cp "$4" "$CLOUD/bucket-${5##*/}"\n')
    tool.chmod(0o755)
    session = made("print('trained')", logs="gs://b/run/logs")
    assert babysit(session, LIMITS) == "finished"
    for host in range(HOSTS):
        copy, end = cloud / f"bucket-t1v-{host}.log", time.monotonic() + 30
        while not copy.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert copy.read_text() == "trained\n"


def test_an_image_is_pulled_and_run(cloud, made):
    """With docker and sudo that write down what they are told."""
    said = cloud / "said"
    for name, text in {
        "sudo": '#!/bin/sh\nexec "$@"\n',
        "gcloud": "#!/bin/sh\necho token\n",
        "docker": f'#!/bin/sh\necho "$@" >> {said}\n[ "$1" != login ] || cat > /dev/null\n',
    }.items():
        (cloud / "tools" / name).write_text(text)
        (cloud / "tools" / name).chmod(0o755)
    image = "us-docker.pkg.dev/lab/images/ratjax:1"
    session = made(image=image)
    assert babysit(session, LIMITS) == "finished"
    login, pull, *_, run = said.read_text().splitlines()
    assert login.endswith("--password-stdin https://us-docker.pkg.dev")
    assert pull == f"pull --quiet {image}"
    assert run.startswith("run --rm --init --privileged --network=host --volume")
    assert "--env RATJAX_REVISION=0123abc" in run and f"{image} python " in run


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        (["running", "running"], "running"),
        (["finished", "running"], "running"),
        (["finished", "finished"], "finished"),
        (["finished", "stopped"], "stopped"),
        (["failed", "running"], "failed"),
        (["none", "running"], "none"),
        (["running"], "unreachable"),
        (["refused"], "refused"),  # the others may have gone down with it
        ([], "unreachable"),
    ],
)
def test_outcome(states, wanted):
    found = [HostStatus(str(i), state, "") for i, state in enumerate(states)]
    assert outcome(found, 2) == wanted


def test_a_state_that_nobody_knows_is_waited_for():
    assert Request("RESUMING").verdict == "wait"
    assert str(Request("ACTIV")) == "ACTIV: unknown; did you mean ACTIVE?"
    assert {verdict for verdict, _ in REQUEST.values()} == {"wait", "ready", "gone"}


def test_what_launch_train_says_when_it_is_stopped():
    """host.sh and launch.pods.restartable look for these words."""
    words = "stopped by a signal"
    for name in ("launch/train.py", "launch/pods/host.sh", "launch/pods/restartable.py"):
        assert words in (ROOT / name).read_text(), name
