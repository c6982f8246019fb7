"""Many attempts, warm and cold: what grows with each of them would not be seen in one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from tests.faults.conftest import PYTHON
from tests.harness import MakeProject, RunLocal

#: As many as CI has time for; docs/reliability.md tells of more.
WARM = int(os.environ.get("RUN_LOCAL_TEST_WARM", "1000"))
COLD = int(os.environ.get("RUN_LOCAL_TEST_COLD", "30"))
AT_ONCE = 4
MOST_GROWTH_BYTES = 8 * 2**20

FLOW = """
    import asyncio
    import os
    import pathlib

    from executor import Resources, Reuse, TaskEnvironment

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=1, memory="192Mi"))
    warm_env = TaskEnvironment(
        "warm", "envs/leaf/environment.yml", resources=Resources(cpu=1, memory="192Mi"), reusable=Reuse(preload=["json"])
    )
    root_env = TaskEnvironment(
        "root", "envs/leaf/environment.yml", depends_on=[leaf_env, warm_env], resources=Resources(cpu=1, memory="512Mi")
    )


    def facts(data: bytes) -> list:
        '''Of the agent: its open files, its memory in KiB, the processes that there are; and whether this one is warm.'''
        agent = pathlib.Path(f"/proc/{os.getppid()}")
        status = dict(line.split(":", 1) for line in (agent / "status").read_text().splitlines() if ":" in line)
        processes = [each for each in os.listdir("/proc") if each.isdigit()]
        return [len(os.listdir(agent / "fd")), int(status["VmRSS"].split()[0]), len(processes)]


    @leaf_env.task
    def small(data: bytes) -> list:
        print("some words")
        return facts(data)


    @warm_env.task
    def warm(data: bytes) -> list:
        return facts(data)


    @root_env.task
    def many(times: int) -> list:
        '''One after the other in one slot: every tenth with a large value.'''
        told = []
        for number in range(times):
            data = bytes(100_000) if number % 10 == 0 else b"x"
            told.append((warm if number % 2 else small)(data))
        return told


    @root_env.task
    async def cold(times: int) -> int:
        '''Each in a slot of its own: no two ask for the same amount of memory.'''
        room = asyncio.Semaphore(4)

        async def one(number: int) -> list:
            async with room:
                terms = Resources(cpu=0.5, memory=(64 * 2**20) + number * 4096)
                return await small.override(resources=terms).aio(b"x")

        return len(await asyncio.gather(*(one(number) for number in range(times))))
"""


@dataclass
class Watched:
    """What of a process was seen each time that it was looked at: its open files, its memory, its zombies."""

    process: subprocess.Popen[str]
    files: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    zombies: list[int] = field(default_factory=list)

    def look(self, until: threading.Event) -> None:
        """Look ten times a second."""
        folder = Path(f"/proc/{self.process.pid}")
        while not until.wait(0.1):
            try:
                resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                files, children = (
                    len(list((folder / "fd").iterdir())),
                    (folder / f"task/{folder.name}/children").read_text(),
                )
            except OSError:
                return  # it has ended
            self.memory.append(resident)
            self.files.append(files)
            self.zombies.append(sum(_is_zombie(pid) for pid in children.split()))


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def growth(values: list[int]) -> float:
    """How much larger the last tenth of what was seen is than the second; the first is the beginning of everything."""
    tenth = len(values) // 10
    return statistics.median(values[-tenth:]) - statistics.median(values[tenth : 2 * tenth])


@pytest.mark.slow  # a leak of one file in a hundred attempts is to be seen
def test_warm_attempts_leave_nothing_in_anybody(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Neither in the agent, which serves all of them, nor in run-local: open files, memory, processes."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    process = run_local.start("many", "--times", str(WARM), "--json", "--runtime", runtime, cwd=root)
    host, over = Watched(process), threading.Event()
    watching = threading.Thread(target=host.look, args=(over,))
    watching.start()
    stdout, stderr = process.communicate(timeout=600)
    over.set()
    watching.join()
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert len(document["calls"]) == WARM + 1
    assert {call["attempts"] for call in document["calls"]} == {1}
    told = document["result"]
    for each in (told[0::2], told[1::2]):  # two environments, an agent each
        files, memory, processes = ([one[what] for one in each] for what in range(3))
        assert set(processes) == {processes[0]}
        assert growth(files) <= 0
        assert growth(memory) * 1024 < MOST_GROWTH_BYTES
    assert len(host.files) > 20
    assert growth(host.files) <= 8  # values that are being stored
    assert max(host.zombies[-10:]) == 0
    assert growth(host.memory) < MOST_GROWTH_BYTES + 20_000 * WARM  # it remembers how each call ended


@pytest.fixture
def seen(engine: docker.DockerClient) -> Iterator[set[str]]:
    """The ids of the containers of run-local that are created meanwhile."""
    ids: set[str] = set()
    events = engine.api.events(filters={"type": "container", "event": "create", "label": "run-local=slot"}, decode=True)

    def read() -> None:
        ids.update(event["id"] for event in events)

    reading = threading.Thread(target=read)
    reading.start()
    yield ids
    events.close()
    reading.join()


@pytest.mark.slow  # each is a container of its own
@pytest.mark.docker
def test_cold_containers_leave_nothing_on_the_machine(
    run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, seen: set[str]
) -> None:
    """No container, mount, control group, network interface or folder that names one of them."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    done = run_local("cold", "--times", str(COLD), "--json", "--runtime", "docker", cwd=root, timeout_s=900)
    assert done.code == 0, done.stderr
    assert done.document["result"] == COLD
    mine = {call["container"] for call in done.document["calls"]}
    ids = {each for each in seen if each[:12] in mine}
    assert len(mine) == len(ids) == COLD + 1
    assert ids & {each["Id"] for each in engine.api.containers(all=True)} == set()
    there = Path("/proc/self/mountinfo").read_text() + Path("/proc/net/unix").read_text()
    groups = " ".join(str(path) for path in Path("/sys/fs/cgroup").glob("*/docker/*"))
    groups += " ".join(str(path) for path in Path("/sys/fs/cgroup").glob("system.slice/*"))
    assert [each for each in ids if each in there or each in groups] == []
    assert list((run_local.home / "runs" / done.document["run"]).glob("slots")) == []
