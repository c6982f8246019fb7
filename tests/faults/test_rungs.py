"""The process runtime where the kernel refuses namespaces: which rung it stands on is told, and nothing is left on any."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from executor.runtimes.rungs import Rung
from tests.conftest import lacking
from tests.faults.conftest import Alive, wait_for
from tests.harness import WITHOUT_NAMESPACES, MakeProject, RunLocal

DEAD_S = 5.0
ENDS_S = 30.0
REFUSED = "unshare: Operation not permitted"

#: As root in a user namespace where no further one can be made, ours are refused and bwrap needs none.
ONLY_BUBBLEWRAP = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]

#: What a task may do to those that watch over it; all of them leave a daemon and a child behind.
FLOW = '''
    import os
    import pathlib
    import signal
    import subprocess
    import sys
    import time

    from executor import TaskEnvironment

    env = TaskEnvironment("leaf")

    STUBBORN = """
    import os, signal, sys, time
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[2] == "daemon" and (os.fork() or os.setsid() or os.fork()):
        os._exit(0)
    time.sleep(600)
    """


    def parent_of(pid: int) -> int:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


    @env.task
    def hurt(token: str, what: str) -> int:
        subprocess.Popen([sys.executable, "-c", STUBBORN, token, "child"])
        subprocess.run([sys.executable, "-c", STUBBORN, token, "daemon"], check=True)
        agent = os.getppid()
        supervisor = parent_of(agent)
        print("hurting", flush=True)
        time.sleep(0.5)  # until the agent has passed that on
        if what == "kills its agent":
            os.kill(agent, signal.SIGKILL)
        elif what == "stops its agent":
            os.kill(agent, signal.SIGSTOP)
        elif what == "kills its supervisor":
            os.kill(supervisor, signal.SIGKILL)
        elif what == "stops its supervisor":
            os.kill(supervisor, signal.SIGSTOP)
        elif what == "returns":
            return 1
        time.sleep(600)
        return 0


    @env.task
    def look() -> dict:
        return {"variables": dict(os.environ), "path": sys.path, "pid": os.getpid(), "ids": [os.getuid(), os.getgid()]}
'''


@pytest.fixture
def root(project: MakeProject) -> Path:
    """The project."""
    return project({"flow.py": FLOW}, {"leaf": ["python >=3.10"]})


@pytest.fixture(params=["subreaper", "bubblewrap"])
def rung(request: pytest.FixtureRequest) -> str:
    """A lower rung that can be had here."""
    name: str = request.param
    if name == "bubblewrap" and not shutil.which("bwrap"):
        lacking("bwrap", "it is not installed")
    under = WITHOUT_NAMESPACES if name == "subreaper" else ONLY_BUBBLEWRAP
    if subprocess.run([*under, shutil.which("true") or ""], capture_output=True, check=False).returncode:
        pytest.skip("that rung cannot be made here")
    return name


@pytest.fixture
def restricted(run_local: RunLocal, rung: str) -> RunLocal:
    """The command, where the kernel refuses namespaces."""
    return replace(run_local, under=WITHOUT_NAMESPACES if rung == "subreaper" else ONLY_BUBBLEWRAP)


def test_the_rung_is_told_once_and_kept_in_the_record(restricted: RunLocal, root: Path, rung: str) -> None:
    """On the console, in the record and by `doctor`, with what the kernel refused and why."""
    done = restricted("look", "--runtime", "process", "--json", cwd=root)
    assert done.code == 0, done.stderr
    words = "found and killed by hand" if rung == "subreaper" else "made by bubblewrap"
    assert done.stderr.count(words) == 1
    assert words in restricted("show", "last", cwd=root).stdout
    doctor = json.loads(restricted("doctor", "--json", cwd=root).stdout)["process runtime"]
    assert words in doctor
    assert "no memory limit" in doctor
    if rung == "subreaper":
        assert f"the kernel refuses namespaces ({REFUSED}; a seccomp filter is in force" in doctor
    else:
        assert "sysctl user.max_user_namespaces is 0" in doctor
        assert done.document["result"]["pid"] < 100  # in a namespace of its own


@pytest.mark.parametrize("how", ["option", "variable"])
def test_required_isolation_refuses_to_begin(run_local: RunLocal, root: Path, how: str, home: Path) -> None:
    """Before anything is made, with the reason; full isolation is none, and containers are always."""
    restricted = replace(run_local, under=WITHOUT_NAMESPACES)
    runs = list((home / "runs").glob("*"))
    told = ["--isolation", "required"] if how == "option" else []
    env = {"RUN_LOCAL_ISOLATION": "required"} if how == "variable" else {}
    done = restricted("look", "--runtime", "process", *told, cwd=root, env=env)
    assert (done.code, done.stdout) == (4, "")
    assert "error: tasks cannot be isolated here as `--isolation required` demands\n" in done.stderr
    assert f"  why: the kernel refuses namespaces ({REFUSED}; a seccomp filter is in force" in done.stderr
    assert list((home / "runs").glob("*")) == runs
    assert run_local("look", "--runtime", "process", *told, cwd=root, env=env).code == 0
    if how == "variable":
        over = restricted("look", "--runtime", "process", "--isolation", "auto", cwd=root, env=env)
        assert over.code == 0, over.stderr
        wrong = run_local("look", cwd=root, env={"RUN_LOCAL_ISOLATION": "some"})
        assert (wrong.code, "there is no isolation `some`" in wrong.stderr) == (2, True)


def test_bubblewrap_is_full_isolation(restricted: RunLocal, root: Path, rung: str) -> None:
    """Its namespace is as good as ours."""
    done = restricted("look", "--runtime", "process", "--isolation", "required", cwd=root)
    assert done.code == (0 if rung == "bubblewrap" else 4), done.stderr


@pytest.mark.parametrize(
    ("rung", "what"),
    [
        ("subreaper", "sleeps"),
        ("subreaper", "stops its agent"),
        ("subreaper", "stops its supervisor"),
        ("subreaper", "kills its supervisor"),
        ("bubblewrap", "sleeps"),  # there, the agent is PID 1
    ],
    indirect=["rung"],
)
def test_a_kill_of_run_local_leaves_nothing(
    restricted: RunLocal, root: Path, alive: Alive, token: str, what: str
) -> None:
    """Whoever of agent and supervisor is left kills what the task started, daemons too."""
    command = ["hurt", "--token", token, "--what", what, "--runtime", "process", "-v"]
    process = restricted.start(*command, cwd=root)
    assert process.stderr is not None
    assert any("hurting" in line for line in process.stderr)
    if what != "kills its supervisor":
        wait_for(lambda: len(alive.find()) >= 2, "the task has left its children")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert alive.after(DEAD_S) == []


@pytest.mark.parametrize(
    ("rung", "what"),
    [
        ("subreaper", "kills its agent"),
        ("subreaper", "kills its supervisor"),
        ("subreaper", "returns"),
        ("bubblewrap", "returns"),  # there, the agent is PID 1
    ],
    indirect=["rung"],
)
def test_who_watches_is_watched(restricted: RunLocal, root: Path, alive: Alive, token: str, what: str) -> None:
    """An agent that its task kills is told as lost, and what it cannot kill any more, its supervisor does."""
    process = restricted.start(
        "hurt", "--token", token, "--what", what, "--runtime", "process", "--json", "-v", cwd=root
    )
    if what == "kills its supervisor":
        assert process.stderr is not None
        assert any("hurting" in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=ENDS_S)
    expected = {"kills its agent": 1, "kills its supervisor": 130, "returns": 0}
    assert process.returncode == expected[what], stderr
    if what == "kills its agent":
        error = json.loads(stdout)["error"]
        assert (error["code"], error["why"]) == ("lost_agent", "its first process was killed by SIGKILL")
    assert alive.after(DEAD_S) == []


def test_a_task_finds_nothing_of_the_users_shell(run_local: RunLocal, root: Path, tmp_path: Path) -> None:
    """No search path, no library path, nothing of conda and no secret of the caller's reaches a process, on any rung."""
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(77)")
    mine = {
        "PYTHONHOME": "", "PYTHONSTARTUP": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path), "VIRTUAL_ENV": str(tmp_path),
        "CONDA_DEFAULT_ENV": "mine", "CONDA_PREFIX_1": "/mine", "MY_SECRET": "s3cret", "OMP_NUM_THREADS": "77",
    }  # fmt: skip
    for under in ([], WITHOUT_NAMESPACES):
        done = replace(run_local, under=under)("look", "--runtime", "process", "--json", cwd=root, env=mine)
        assert done.code == 0, done.stderr
        found = done.document["result"]
        left = {name for name in found["variables"] if name in mine and found["variables"][name] == mine[name]}
        assert left == set()
        assert not any(name.startswith(("LD_", "VIRTUAL", "RUN_LOCAL")) for name in found["variables"])
        assert not any(str(tmp_path) in entry and "project" not in entry for entry in found["path"])
        assert found["ids"] == [os.getuid(), os.getgid()]


def test_a_rung_says_what_it_is() -> None:
    """For people, in a line."""
    assert Rung("namespaces").describe() == "a process namespace for each slot"
    assert [Rung(name).is_full for name in ("namespaces", "bubblewrap", "subreaper")] == [True, True, False]
