"""What happens when an engine does not do what it was asked for: real containers, each with one promise broken."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from executor import dockerd
from executor.data.leases import hold_lease
from executor.errors import MachineError
from executor.manifest import Shape
from executor.runtimes import Launch
from executor.runtimes.docker import DockerRuntime
from executor.runtimes.library import worker_library
from tests.harness import MakeProject, RunLocal

Host = dict[str, Any]

FLOW = """
    from executor import TaskEnvironment

    leaf = TaskEnvironment("leaf")


    @leaf.task
    def leave() -> None:
        pass
"""

SHAPE = Shape(
    cpus=0.5, cpus_limit=0.5, memory_bytes=2**27, memory_limit_bytes=2**27, gpus=0, gpu_model="", shm_bytes=2**25
)


class Careless(DockerRuntime):
    """A runtime of an engine that does something else than it is asked for."""

    def __init__(self, home: Path, run: str, bend: Callable[[Host], object]) -> None:
        super().__init__(home, run)
        self._bend = bend

    def _create(self, environment: str, asked: dict[str, Any]) -> str:
        host = dict(asked["host_config"])
        self._bend(host)
        return super()._create(environment, {**asked, "host_config": host})


@pytest.fixture(scope="module")
def built() -> list[str]:
    """The image that the first of these tests has built."""
    return []


@pytest.fixture
def launch(
    run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, tmp_path: Path, built: list[str]
) -> Iterator[Launch]:
    """A slot of a small environment, of a run that holds its lease."""
    root = project({"flow.py": FLOW}, {"leaf": ["python >=3.10"]})
    if not built:
        done = run_local("build", "leaf", "--runtime", "docker", cwd=root)
        built.append(done.stderr.split()[-1])
    folder = run_local.home / "runs" / f"promises-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    with hold_lease(folder) as lease:
        yield Launch(
            run=folder.name, number=1, environment="leaf", specification="s", key="k", image=built[0], prefix=None,
            variables={}, shape=SHAPE, project=root, import_roots=(".",), library=worker_library(run_local.home),
            folder=tmp_path / "slot", lease=lease, network=False,
        )  # fmt: skip
    shutil.rmtree(folder)


def start(launch: Launch, home: Path, bend: Callable[[Host], object] = lambda _: None) -> dict[str, Any]:
    """What the agent of such a slot says; raises where the slot is refused."""

    async def begin() -> dict[str, Any]:
        runtime = Careless(home, launch.run, bend)
        try:
            return (await runtime.start(launch)).hello
        finally:
            await runtime.close()

    return asyncio.run(begin())


def test_what_was_asked_for_is_in_force(launch: Launch, home: Path) -> None:
    """Everything that is promised, as the agent sees it; and no network where there is to be none."""
    hello = start(launch, home)
    assert (hello["pid"], hello["capabilities"], hello["capabilities_bounding"], hello["seccomp"]) == (1, 0, 0, 2)
    assert (hello["memory_limit_bytes"], hello["cpu_limit"]) == (2**27, 0.5)
    assert (hello["shm_bytes"], hello["tmp_bytes"], hello["core"]) == (2**25, 2**26, 0)
    assert hello["interfaces"] == []
    assert {"/task", "/tmp"} <= set(hello["writable_places"]) <= {"/task", "/tmp", "/dev/shm", "/dev/mqueue"}
    there = start(replace(launch, network=True, folder=launch.folder.with_name("other"), number=2), home)
    assert there["interfaces"]


def test_a_task_has_the_other_groups_that_were_asked_for(launch: Launch, home: Path) -> None:
    """So that it may read data that its user may read as a member of a group."""
    assert 4711 in start(launch, home, lambda host: host.update(group_add=["4711"]))["groups"]


def _writable_mounts(host: Host) -> None:
    host["mounts"] = [{**mount, "ReadOnly": False} for mount in host["mounts"]]


BENT: dict[str, tuple[Callable[[Host], object], str]] = {
    "privileged": (lambda host: host.update(privileged=True, cap_drop=[]), "capabilities could be gained again"),
    "capabilities": (lambda host: host.update(cap_drop=[]), "capabilities could be gained again"),
    "privileges": (lambda host: host.update(security_opt=[]), "`no-new-privileges` is not in force"),
    "seccomp": (
        lambda host: host.update(security_opt=["no-new-privileges", "seccomp=unconfined"]),
        "system calls are not filtered (seccomp)",
    ),
    "memory": (lambda host: host.update(mem_limit=2**28, memswap_limit=2**28), f"memory is {2**28}, not {2**27} bytes"),
    "no memory limit": (lambda host: host.update(mem_limit=None, memswap_limit=None), "the limit of memory is none"),
    "swap": (
        lambda host: host.update(memswap_limit=2**28),
        f"tasks may use swap beside their memory (up to {2**27} bytes)",
    ),
    "cores": (lambda host: host.update(nano_cpus=None), "the limit of cores is none, not 0.5"),
    "processes": (lambda host: host.update(pids_limit=-1), "the limit of processes is none"),
    "root": (lambda host: host.update(read_only=False), "the root file system is writable"),
    "shm": (lambda host: host.update(shm_size=2**26), f"the size of /dev/shm is {2**26}"),
    "tmp": (lambda host: host.update(tmpfs={"/tmp": "rw,mode=1777"}), "the size of /tmp is"),
    "open files": (
        lambda host: host.update(ulimits=[host["ulimits"][0], {"Name": "nofile", "Soft": 512, "Hard": 512}]),
        "the limit of open files is 512",
    ),
    "network": (lambda host: host.update(network_mode="bridge"), "there is a network (eth0)"),
    "mounts": (_writable_mounts, "`/project` can be written to"),
    "another mount": (
        lambda host: host.update(tmpfs={**host["tmpfs"], "/spare": "rw,mode=1777"}),
        "`/spare` can be written to",
    ),
    "first process": (lambda host: host.update(init=True), "the agent is not PID 1"),
}


@pytest.mark.parametrize("what", BENT)
def test_a_slot_is_refused_and_the_promise_named(
    launch: Launch, home: Path, engine: docker.DockerClient, what: str
) -> None:
    """The container is gone, and the message says what the engine did not keep."""
    bend, named = BENT[what]
    with pytest.raises(MachineError, match="a container of `leaf` was refused") as refused:
        start(launch, home, bend)
    assert named in refused.value.why
    assert engine.api.containers(all=True, filters={"label": f"{dockerd.LABEL}.run={launch.run}"}) == []
