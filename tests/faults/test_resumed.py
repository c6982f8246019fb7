"""`run-local resume` after `kill -9` at any moment and after Ctrl-C: nothing that was done is done again."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import PYTHON, Alive
from tests.harness import Finished, MakeProject, RunLocal

DEAD_S = 2.0
#: Each is a run that is killed, and one that goes on with it. The forty of a release: `RUN_LOCAL_TEST_KILLS=40`.
KILLS = int(os.environ.get("RUN_LOCAL_TEST_KILLS", "4"))
WITHIN_S = {"process": 2.5, "docker": 4.0}
PARTS = 12

FLOW = """
    import os
    import time

    import executor

    leaf = executor.TaskEnvironment("leaf", resources=executor.Resources(cpu=0.5, memory="256Mi"))
    root = executor.TaskEnvironment("root", depends_on=[leaf], resources=executor.Resources(cpu=0.5, memory="256Mi"))


    @leaf.task
    def part(token: str, n: int) -> list[str]:
        print("computing", n, flush=True)
        time.sleep(0.15)
        return [token, f"{n}:{os.urandom(8).hex()}", "." * 100_000]


    @root.task
    def whole(token: str, parts: int) -> list[str]:
        return [made[1] for made in executor.map(part, [token] * parts, range(parts), concurrency=2)]
"""


@pytest.fixture
def flow(project: MakeProject) -> Path:
    """A project whose task `whole` makes twelve parts, each with a text that no other call would come to."""
    return project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})


def done_in(run_local: RunLocal, run: str, cwd: Path) -> set[str]:
    """The calls of a run that are committed, as its record tells them."""
    return {
        call["id"]
        for call in run_local("show", run, "--json", cwd=cwd).document["calls"]
        if call["status"] in ("succeeded", "cached")
    }


def demand_nothing_twice(resumed: Finished, committed: set[str], killed: str) -> None:
    """Every call that was committed is taken over, with its value, and no other is."""
    assert resumed.code == 0, resumed.stderr
    document = resumed.document
    if "1" in committed:
        assert [call["status"] for call in document["calls"]] == ["cached"]
        return
    parts = [call for call in document["calls"] if call["parent"]]
    taken = {call["origin"]["call"] for call in parts if call["status"] == "cached"}
    assert taken == committed
    assert all(call["origin"]["run"] == killed for call in parts if call["status"] == "cached")
    assert sorted(call["status"] for call in parts if call["status"] != "cached") == ["succeeded"] * (
        PARTS - len(committed)
    )
    assert [text.partition(":")[0] for text in document["result"]] == [str(n) for n in range(PARTS)]


def test_no_committed_call_runs_twice_after_a_kill(
    run_local: RunLocal, flow: Path, runtime: str, alive: Alive, token: str
) -> None:
    """Killed at a random moment, nothing is alive after 2 s, and the resumed run does the rest."""
    assert run_local("whole", "--token", "first", "--parts", "1", "--runtime", runtime, cwd=flow).code == 0
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    moments = random.Random(seed)
    taken = 0
    for _ in range(KILLS):
        moment = moments.uniform(0.4, WITHIN_S[runtime])
        arguments = ("whole", "--token", token, "--parts", str(PARTS), "--runtime", runtime, "--json")
        process = run_local.start(*arguments, cwd=flow)
        time.sleep(moment)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert alive.after(DEAD_S) == [], f"killed after {moment:.3f} s"
        runs = json.loads(run_local("runs", "-n", "1", "--json", cwd=flow).stdout)
        if ended or runs[0]["status"] != "interrupted":
            continue  # it was too early, or too late
        killed = runs[0]["run"]
        committed = done_in(run_local, killed, flow)
        resumed = run_local("resume", killed, "--json", cwd=flow)
        if resumed.code == 2:
            assert "nothing of it was done" in resumed.stderr
            assert committed == set()
            continue
        demand_nothing_twice(resumed, committed, killed)
        taken += len(committed)
    assert taken or KILLS < 8


def test_a_run_that_was_stopped_is_resumed(run_local: RunLocal, flow: Path, runtime: str, token: str) -> None:
    """Ctrl-C leaves what was done; the hint names the command that goes on."""
    arguments = ("whole", "--token", token, "--parts", str(PARTS), "--runtime", runtime, "--json", "-v")
    process = run_local.start(*arguments, cwd=flow)
    assert process.stderr is not None
    for line in process.stderr:
        if "✓ 1.2 " in line:
            break
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    assert process.wait() == 130
    assert process.stdout is not None
    run = json.loads(process.stdout.read())["run"]
    assert f"run-local resume {run}" in told
    committed = done_in(run_local, run, flow)
    assert committed
    demand_nothing_twice(run_local("resume", run, "--json", cwd=flow), committed, run)


@pytest.mark.parametrize("journal", ["", '{"fact":"RunSta'])
def test_a_run_that_was_killed_before_it_began(run_local: RunLocal, tmp_path: Path, journal: str) -> None:
    """There is nothing to go on with, and it says so."""
    run = "20260101-000000-0000"
    folder = tmp_path / "home" / "runs" / run
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text(journal)
    home = {"RUN_LOCAL_HOME": str(tmp_path / "home")}
    done = run_local("resume", run, cwd=tmp_path, env=home)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: run {run} cannot be resumed\n"
        "  why: it ended before it had begun\n"
        "  hint: run its workflow again: nothing of it was done\n"
    )
    for command in ("show", "why", "report", "logs"):
        other = run_local(command, run, cwd=tmp_path, env=home)
        assert other.code in (0, 2), other.stderr
        assert "Traceback" not in other.stderr
        assert "bug" not in other.stderr
