"""`run-local gc` for runs and values, `pin` and `du`, with runs that really ran."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import wait_for
from tests.harness import MakeProject, RunLocal

FLOW = """
    import pathlib
    import time

    from executor import File, Resources, TaskEnvironment

    env = TaskEnvironment("leaf", resources=Resources(cpu=0.25, memory="128Mi"))


    @env.task(cache="auto")
    def part(number: int) -> bytes:
        return bytes([number]) * 300_000


    @env.task
    def whole(number: int, until: str = "") -> File:
        part(number)
        while until and not pathlib.Path(until).exists():
            time.sleep(0.05)
        pathlib.Path("out.txt").write_text(f"of {number}")
        return File("out.txt")
"""


@pytest.fixture
def local(run_local: RunLocal, tmp_path: Path) -> RunLocal:
    """A home of its own; no engine, of which others use the images."""
    variables = {**run_local.variables, "DOCKER_HOST": f"unix://{tmp_path}/nowhere"}
    return replace(run_local, home=tmp_path / "home", variables=variables)


def document(local: RunLocal, root: Path, *arguments: str) -> Any:
    """What a command prints with `--json`."""
    done = local(*arguments, "--json", cwd=root)
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def run(local: RunLocal, root: Path, number: int) -> str:
    """A run; its id."""
    name: str = document(local, root, "whole", "--number", str(number), "--runtime", "process")["run"]
    return name


def runs(local: RunLocal, root: Path) -> list[str]:
    """The ids of all runs, newest first."""
    return [each["run"] for each in document(local, root, "runs")]


def started(local: RunLocal, root: Path, flag: Path) -> subprocess.Popen[str]:
    """A run that goes on until there is a file."""
    known = set(local.home.glob("runs/*"))
    going = local.start("whole", "--number", "9", "--until", str(flag), "--runtime", "process", cwd=root)
    wait_for(
        lambda: any("AttemptStarted" in path.read_text() for path in local.home.glob("runs/*/journal.jsonl")
                    if path.parent not in known),
        "a run that goes on",
    )  # fmt: skip
    return going


def test_old_runs_go_and_what_stays_works(local: RunLocal, project: MakeProject, tmp_path: Path) -> None:
    """Pinned, newest and living runs stay whole; what went is computed again where it is wanted."""
    root = project({"workflow.py": FLOW}, {"leaf": ["python >=3.10"]})
    ids = [run(local, root, number) for number in (1, 2, 3)]
    assert local("pin", ids[0], cwd=root).code == 0
    going = started(local, root, tmp_path / "flag")
    planned = document(local, root, "gc", "--keep-last", "2", "--dry-run")
    removed = document(local, root, "gc", "--keep-last", "2")
    assert removed["removed"] == planned["removed"]
    assert [(each["kind"], each["name"]) for each in removed["removed"] if each["kind"] == "run"] == [("run", ids[1])]
    (tmp_path / "flag").touch()
    assert going.wait(60) == 0, going.communicate()[1]
    assert runs(local, root)[1:] == [ids[2], ids[0]]
    before = document(local, root, "du")
    removed = document(local, root, "gc", "--all", "--keep-last", "1")
    assert {"run", "result", "value"} <= {each["kind"] for each in removed["removed"]}
    assert {(each["kind"], each["why"]) for each in removed["kept"]} >= {("run", "it is pinned")}
    assert runs(local, root)[1:] == [ids[0]]
    after = {each["kind"]: each["bytes"] for each in document(local, root, "du")}
    assert after["values"] < {each["kind"]: each["bytes"] for each in before}["values"]
    pinned = document(local, root, "show", ids[0])
    assert Path(pinned["result"]).read_text() == "of 1"
    assert local("report", ids[0], cwd=root).code == 0
    again = document(local, root, "whole", "--number", "1", "--runtime", "process")
    assert [call["status"] for call in again["calls"]] == ["succeeded", "succeeded"]
