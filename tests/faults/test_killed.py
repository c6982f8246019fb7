"""`kill -9` of run-local at any moment: nothing of it lives on, and the next run clears up and works."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import PATIENCE_S, Alive, Index, wait_for
from tests.harness import Leftovers, MakeProject, RunLocal

DEAD_S = 2.0
#: As many as CI has time for; docs/reliability.md tells of more.
KILLS = int(os.environ.get("RUN_LOCAL_TEST_KILLS", "6"))
#: Describing a small project ends and its tasks begin in this time; the latest kills meet it haunting.
WITHIN_S = {"process": 1.0, "docker": 2.0}


def kill(process: subprocess.Popen[str]) -> None:
    """Kill run-local itself, and nobody else, as the kernel does where memory runs out."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def statuses(run_local: RunLocal, cwd: Path) -> dict[str, str]:
    """Run → status, as `run-local runs` shows them."""
    return {
        each["run"]: each["status"] for each in json.loads(run_local("runs", "-n", "1000", "--json", cwd=cwd).stdout)
    }


def test_nothing_survives_a_kill_at_a_random_moment(
    run_local: RunLocal, haunted: Path, runtime: str, alive: Alive, token: str, home: Path, leftovers: Leftovers
) -> None:
    """Each time nothing is alive after 2 s; the next run removes what lies about, works, and knows of the killed one."""
    assert run_local("two", "--runtime", runtime, cwd=haunted).code == 0  # so that its environments are built
    before, known = leftovers.find(), statuses(run_local, haunted)
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")  # pytest shows it where the test fails
    moments = random.Random(seed)
    for _ in range(KILLS):
        moment = moments.uniform(0.1, WITHIN_S[runtime])
        process = run_local.start("haunt", "--token", token, "--runtime", runtime, cwd=haunted)
        time.sleep(moment)
        kill(process)
        assert alive.after(DEAD_S) == [], f"killed after {moment:.3f} s"

        following = run_local("two", "--runtime", runtime, "--json", cwd=haunted)
        assert following.code == 0, following.stderr
        assert following.document["result"] == 2
        assert leftovers.since(before) == [], f"killed after {moment:.3f} s"
        assert [str(path) for path in home.glob("runs/*/slots")] == []
        new = {run: status for run, status in statuses(run_local, haunted).items() if run not in known}
        assert new.pop(following.document["run"]) == "succeeded"
        assert set(new.values()) <= {"interrupted"}
        known |= {following.document["run"]: "", **new}
    assert list(alive.find()) == []


def test_a_kill_while_tasks_haunt_is_seen_in_the_record(
    run_local: RunLocal, haunted: Path, runtime: str, alive: Alive, token: str
) -> None:
    """The run is `interrupted`, its calls are shown as far as they came, and what the tasks printed is there."""
    process = run_local.start("haunt", "--token", token, "--runtime", runtime, "-v", cwd=haunted)
    assert process.stderr is not None
    assert any("haunting" in line for line in process.stderr)
    assert len([line for line in alive.find() if "of a task" in line]) >= 6  # 3 calls, two children each
    kill(process)
    assert alive.after(DEAD_S) == []
    shown = run_local("show", "last", "--json", cwd=haunted).document
    assert shown["status"] == "interrupted"
    assert [call["task"] for call in shown["calls"]] == ["root.haunt", "leaf.work", "leaf.work"]
    assert "haunting" in run_local("logs", "last", cwd=haunted).stdout


def test_a_kill_while_describing(run_local: RunLocal, project: MakeProject, alive: Alive, token: str) -> None:
    """The child that imports the workflow dies, too."""
    source = f"""
        import pathlib
        import time

        from executor import TaskEnvironment

        env = TaskEnvironment("leaf")
        pathlib.Path({token!r}).touch()
        time.sleep(600)


        @env.task
        def work() -> int:
            return 1
    """
    root = project({"flow.py": source}, {"leaf": ["python"]})
    process = run_local.start("work", cwd=root)
    wait_for((root / token).exists, "the import began")
    kill(process)
    assert alive.after(DEAD_S) == []


@pytest.mark.parametrize(("step", "hang"), [("locking", "/"), ("installing", ".whl")])
def test_a_kill_while_an_environment_is_made(
    run_local: RunLocal, project: MakeProject, alive: Alive, index: Index, home: Path, step: str, hang: str
) -> None:
    """The solver and the installer die, with the programs that they run; the next run begins that step again."""
    source = """
        from executor import TaskEnvironment

        env = TaskEnvironment("slow")


        @env.task
        def work() -> int:
            return 1
    """
    root = project({"flow.py": source}, {"slow": index.spec})
    index.hang = hang
    process = run_local.start("work", "--runtime", "process", cwd=root, env=index.variables)
    assert index.reached.wait(PATIENCE_S), step
    kill(process)
    assert alive.after(DEAD_S) == [], step

    index.hang = ""
    done = run_local("work", "--runtime", "process", "--json", cwd=root, env=index.variables)
    assert (done.code, done.document["result"]) == (0, 1), done.stderr
    assert [path.name for path in (home / "tmp").iterdir()] == []
