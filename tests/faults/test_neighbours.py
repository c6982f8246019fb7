"""Several runs on one machine: whoever clears up after a dead one touches nothing of those that live."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from tests.faults.conftest import PATIENCE_S, Alive
from tests.faults.test_killed import DEAD_S, kill, statuses
from tests.harness import Leftovers, RunLocal

HAUNTING = 7  # the command, and a child and a daemon of each of its three calls


def start_haunting(run_local: RunLocal, root: Path, runtime: str, token: str) -> subprocess.Popen[str]:
    """A run whose last task is at work, and never ends."""
    process = run_local.start("haunt", "--token", token, "--runtime", runtime, "-v", cwd=root)
    assert process.stderr is not None
    assert any("haunting" in line for line in process.stderr)
    return process


def of_tasks(alive: Alive) -> list[str]:
    """The processes that carry the token."""
    return [line for line in alive.find() if line.endswith("of a task")]


def settled(alive: Alive) -> list[str]:
    """The processes of a run that haunts, once those that only started others are gone."""
    deadline = time.monotonic() + PATIENCE_S
    while len(found := of_tasks(alive)) != HAUNTING and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == HAUNTING
    return found


def test_the_dead_are_cleared_away_and_the_living_are_not(
    run_local: RunLocal, haunted: Path, runtime: str, alive: Alive, token: str
) -> None:
    """Of two runs one is killed; a third begins, and clears up; the other goes on as if nothing had been."""
    known = statuses(run_local, haunted)
    other = replace(alive, token=f"{token}-other")
    killed = start_haunting(run_local, haunted, runtime, token)
    lives = start_haunting(run_local, haunted, runtime, other.token)
    before = settled(other)
    kill(killed)
    assert run_local("two", "--runtime", runtime, cwd=haunted).stdout == "2\n"
    assert of_tasks(alive) == []
    assert of_tasks(other) == before
    assert lives.poll() is None
    new = {run: status for run, status in statuses(run_local, haunted).items() if run not in known}
    assert sorted(new.values()) == ["interrupted", "running", "succeeded"]
    kill(lives)
    assert other.after(DEAD_S) == []


SCRIPT = """
import os
import sys
import time

import executor
from flow import haunt

run = executor.with_options(runtime=sys.argv[1]).run(haunt, token=sys.argv[2])
while not any("haunting" in log.read_text() for log in (run.outputs.parent / "logs").glob("*.log")):
    time.sleep(0.01)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_what_a_script_has_forked_keeps_nothing_alive(
    run_local: RunLocal, haunted: Path, runtime: str, alive: Alive, token: str
) -> None:
    """A script is killed and its child lives on: it holds neither the lease of the run, nor the lines to its slots."""
    (haunted / "script.py").write_text(SCRIPT)
    script = subprocess.Popen(
        [sys.executable, "-W", "ignore", "script.py", runtime, token],
        cwd=haunted,
        env={**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert script.stdout is not None
    child = int(script.stdout.readline())
    try:
        script.kill()
        script.wait()
        lives_on = f"process {child} "
        assert alive.after(DEAD_S, but=lives_on) == []
        assert lives_on in "\n".join(alive.find())
        assert "interrupted" in statuses(run_local, haunted).values()
    finally:
        os.kill(child, signal.SIGKILL)
        script.stdout.close()


@pytest.fixture
def image(run_local: RunLocal, haunted: Path, engine: docker.DockerClient) -> str:
    """An image of ours."""
    done = run_local("two", "--runtime", "docker", cwd=haunted)
    assert done.code == 0, done.stderr
    key = json.loads(run_local("envs", "--json", cwd=haunted).stdout)[0]["key"]
    found: str = engine.api.images(filters={"label": f"run-local.key={key}"})[0]["Id"]
    return found


@pytest.fixture
def leases(home: Path) -> Iterator[dict[str, Path]]:
    """The leases of three runs: one that is held, one that nobody holds any more, one that was given back."""
    folders = {
        name: home / "runs" / f"20000101-000000-000{number}" for number, name in enumerate(("held", "dead", "gone"))
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    made = {name: folder / "lease" for name, folder in folders.items()}
    made["dead"].write_text(str(os.getpid()))  # whatever was written there: that some process lives says nothing
    with made["held"].open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield made
    for folder in folders.values():
        (folder / "lease").unlink(missing_ok=True)
        folder.rmdir()


@pytest.mark.docker
def test_containers_that_never_ran_go_with_their_owner(
    run_local: RunLocal, haunted: Path, engine: docker.DockerClient, image: str, leases: dict[str, Path],
    leftovers: Leftovers,
) -> None:  # fmt: skip
    """What a killed run had created and not started is removed by the next one; what has a living owner is not."""
    made = {}
    for name, lease in leases.items():
        labels = {**leftovers.labels, "run-local": "slot", "run-local.lease": str(lease)}
        made[name] = engine.api.create_container(image, command=["/opt/env/bin/python"], labels=labels)["Id"]
    try:
        assert run_local("two", "--runtime", "docker", cwd=haunted).code == 0
        there = {each["Id"] for each in engine.api.containers(all=True)}
        assert {name for name, container in made.items() if container in there} == {"held"}
    finally:
        engine.api.remove_container(made["held"], force=True)
