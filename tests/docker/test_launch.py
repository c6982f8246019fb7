"""What a task really finds around it in a container, asked from the inside; and what the engine saw of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.harness import MakeProject, RunLocal

pytestmark = pytest.mark.docker

MEMORY = 192 * 2**20
NAMES = ("one", "two", "three", "four")

FLOW = f"""
    import os
    import pathlib
    import subprocess

    from executor import Resources, TaskEnvironment

    shape = Resources(cpu=0.5, memory={MEMORY})
    one = TaskEnvironment("one", resources=shape)
    two = TaskEnvironment("two", resources=shape)
    three = TaskEnvironment("three", resources=shape)
    four = TaskEnvironment("four", resources=shape, depends_on=[one, two, three])


    def read(path: str) -> str:
        try:
            return pathlib.Path(path).read_text()
        except OSError:
            return ""


    def refusal(path: str) -> str:
        try:
            pathlib.Path(path, "written").write_text("x")
        except OSError as error:
            return error.strerror
        return ""


    def look() -> dict:
        status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines() if ":" in line)
        limit = read("/sys/fs/cgroup/memory.max") or read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
        return {{
            "uid": [os.getuid(), os.geteuid(), os.getgid()],
            "groups": os.getgroups(),
            "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")],
            "no_new_privileges": status["NoNewPrivs"].strip(),
            "seccomp": status["Seccomp"].strip(),
            "memory": int(limit),
            "refusals": {{path: refusal(path) for path in ("/", "/opt/env", "/project", "/run-local/lib", "/run-local/in")}},
            "sockets": [path for path in ("/var/run/docker.sock", "/run/docker.sock") if os.path.exists(path)],
            "ours": sorted(os.listdir("/run-local")),
            "homes": os.listdir("/root") if os.access("/root", os.R_OK) else [],
            "first": pathlib.Path("/proc/1/cmdline").read_bytes().split(b"\\0")[3:4] == [b"/run-local/lib"],
            "mounts": read("/proc/self/mountinfo"),
            "variables": sorted(os.environ),
        }}


    @one.task
    def first() -> dict:
        return look()


    @two.task
    def second() -> int:
        return 2


    @three.task
    def third() -> int:
        return 3


    @four.task
    def all_of_them() -> dict:
        return {{"inside": first(), "sum": second() + third()}}
"""


@pytest.fixture(scope="module")
def began() -> int:
    """When these tests began, for the engine's events."""
    return int(time.time())


@pytest.fixture
def done(run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, began: int) -> dict[str, Any]:
    """The document of one run over four environments."""
    assert engine.ping()
    root = project({"flow.py": FLOW}, {name: ["python >=3.10"] for name in NAMES})
    finished = run_local("all_of_them", "--runtime", "docker", "--json", cwd=root)
    assert finished.code == 0, finished.stderr
    return finished.document


def test_a_task_is_nobody_and_may_nothing(done: dict[str, Any], home: Path) -> None:
    """Not root, no capability, no way to get one, a read-only root, its memory limit, and nothing of this machine."""
    inside = done["result"]["inside"]
    assert 0 not in inside["uid"]
    assert 0 not in inside["groups"]
    assert inside["capabilities"] == [0, 0, 0, 0]
    assert inside["no_new_privileges"] == "1"
    assert inside["seccomp"] == "2"
    assert inside["memory"] == MEMORY
    assert inside["refusals"]["/"] == "Read-only file system"
    assert all(inside["refusals"].values()), inside["refusals"]
    assert inside["sockets"] == []
    assert inside["homes"] == []
    assert inside["first"]


def test_a_task_sees_no_folder_but_its_own(done: dict[str, Any]) -> None:
    """Of all folders of this run only those of its own slot are mounted, and no other's socket."""
    inside = done["result"]["inside"]
    mounted = [line.split()[3:5] for line in inside["mounts"].splitlines()]
    slots = {source.partition("/slots/")[2].partition("/")[0] for source, _ in mounted if "/slots/" in source}
    sockets = {source for source, target in mounted if target == "/run-local/ctl"}
    assert len(slots) == len(sockets) == 1
    assert inside["ours"] == ["ctl", "in", "lib"]
    assert not any(name.startswith(("RUN_LOCAL", "DOCKER")) for name in inside["variables"])


def test_every_environment_ran_in_its_own_image_and_nothing_is_left(
    done: dict[str, Any], engine: docker.DockerClient, began: int
) -> None:
    """The engine's events of the run show four images; of its containers none is there afterwards."""
    label = f"run-local.run={done['run']}"
    filters = {"type": "container", "event": "start", "label": label}
    events = list(engine.api.events(since=began, until=int(time.time()) + 1, filters=filters, decode=True))
    images = {event["Actor"]["Attributes"]["run-local.environment"]: event["from"] for event in events}
    assert set(images) == set(NAMES)
    assert len(set(images.values())) == 4
    assert engine.api.containers(all=True, filters={"label": label}) == []
