"""Ctrl-C and SIGTERM at any moment: exit code 130 or 143, a word for people, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.conftest import PATIENCE_S, Alive, Index, wait_for
from tests.harness import Finished, MakeProject, RunLocal

ENDS_S = 15.0

SLOW = """
    import pathlib
    import time

    from executor import TaskEnvironment

    env = TaskEnvironment("slow")


    @env.task
    def work() -> int:
        return 1
"""


def press(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> None:
    """What a terminal does on Ctrl-C: the signal goes to all of the process group; SIGTERM goes to run-local alone."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def finish(process: subprocess.Popen[str]) -> Finished:
    """Its end, which has to come soon."""
    stdout, stderr = process.communicate(timeout=ENDS_S)
    return Finished(code=process.returncode, stdout=stdout, stderr=stderr, seconds=0)


def demand_clean_end(done: Finished, alive: Alive, number: signal.Signals = signal.SIGINT) -> None:
    """The promise of every interrupt."""
    assert done.code == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert alive.find() == []


def start_haunting(run_local: RunLocal, root: Path, token: str, *options: str) -> subprocess.Popen[str]:
    """A run whose last task is at work, and never ends."""
    process = run_local.start("haunt", "--token", token, "-v", "--json", *options, cwd=root)
    assert process.stderr is not None
    assert any("haunting" in line for line in process.stderr)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_running_task_is_stopped(
    run_local: RunLocal, haunted: Path, runtime: str, alive: Alive, token: str, number: signal.Signals
) -> None:
    """The run is cancelled in the record and in the JSON document; so is each call; the next run works."""
    process = start_haunting(run_local, haunted, token, "--runtime", runtime)
    press(process, number)
    done = finish(process)
    demand_clean_end(done, alive, number)
    assert f"stopping ({number.name})" in done.stderr
    assert done.document["status"] == "cancelled"
    assert [call["status"] for call in done.document["calls"]] == ["cancelled"] * 3
    assert json.loads(run_local("runs", "-n", "1", "--json", cwd=haunted).stdout)[0]["status"] == "cancelled"
    assert run_local("two", "--runtime", runtime, cwd=haunted).stdout == "2\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_stops_at_once(
    run_local: RunLocal, haunted: Path, runtime: str, alive: Alive, token: str, number: signal.Signals
) -> None:
    """A second one does not wait for anything, and leaves nothing either."""
    process = start_haunting(run_local, haunted, token, "--runtime", runtime)
    press(process, number)
    assert process.stderr is not None
    assert any("stopping" in line for line in process.stderr)
    press(process, number)
    done = finish(process)
    assert done.code == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert alive.after(2.0) == []
    assert run_local("two", "--runtime", runtime, cwd=haunted).stdout == "2\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_describing(
    run_local: RunLocal, project: MakeProject, alive: Alive, token: str, number: signal.Signals
) -> None:
    """No run has begun: one word, and a document that says so."""
    source = SLOW.replace("\n\n    env", f"\n\n    pathlib.Path({token!r}).touch()\n    time.sleep(600)\n    env", 1)
    root = project({"flow.py": source}, {"slow": ["python"]})
    process = run_local.start("work", "--json", cwd=root)
    wait_for((root / token).exists, "the import began")
    press(process, number)
    done = finish(process)
    demand_clean_end(done, alive, number)
    assert done.stderr.strip() == "interrupted"
    assert (done.document["run"], done.document["status"]) == (None, "cancelled")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("step", "hang"), [("locking", "/"), ("installing", ".whl")])
def test_an_environment_is_being_made(
    run_local: RunLocal, project: MakeProject, alive: Alive, index: Index, home: Path, step: str, hang: str,
    number: signal.Signals,
) -> None:  # fmt: skip
    """Nothing half-made stays, the document says cancelled, and the next run makes the environment."""
    root = project({"flow.py": SLOW}, {"slow": index.spec})
    index.hang = hang
    command = ["work", "--runtime", "process", "--json"]
    process = run_local.start(*command, cwd=root, env=index.variables)
    assert index.reached.wait(PATIENCE_S), step
    press(process, number)
    done = finish(process)
    assert alive.after(2.0) == [], step
    demand_clean_end(done, alive, number)
    assert done.document["status"] == "cancelled"
    assert "cancelled after" in done.stderr
    assert list((home / "tmp").iterdir()) == []

    index.hang = ""
    again = run_local(*command, cwd=root, env=index.variables)
    assert again.code == 0, again.stderr
    assert again.document["result"] == 1


@pytest.mark.parametrize("command", ["lock", "build"])
def test_commands_about_environments(
    run_local: RunLocal, project: MakeProject, alive: Alive, index: Index, command: str
) -> None:
    """`lock` and `build` stop as well; no half lock lies beside the specification."""
    root = project({"flow.py": SLOW}, {"slow": index.spec})
    index.hang = "/"
    process = run_local.start(command, "--runtime", "process", cwd=root, env=index.variables)
    assert index.reached.wait(PATIENCE_S)
    press(process)
    demand_clean_end(finish(process), alive)
    assert [path.name for path in (root / "envs/slow").iterdir()] == ["environment.yml"]
