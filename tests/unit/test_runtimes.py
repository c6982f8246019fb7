"""What the runtimes promise, as far as it can be seen without starting a slot."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor import dockerd, machine
from executor.errors import MachineError
from executor.manifest import Shape
from executor.runtimes import Launch, docker
from executor.runtimes import process as process_runtime
from executor.runtimes.process import ProcessRuntime
from executor.runtimes.slot import Line
from executor.worker import kernel

SHAPE = Shape(
    cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=100_000_000, gpus=0, gpu_model="", shm_bytes=None
)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A slot of an environment that does not exist."""
    return Launch(
        run="20260101-000000-0000", number=1, environment="leaf", specification="s", key="k", image="i",
        prefix=tmp_path / "prefix",
        shape=SHAPE, project=tmp_path, import_roots=(".",), library=tmp_path, folder=tmp_path / "slots" / "1",
        lease=tmp_path / "lease", variables={},
    )  # fmt: skip


def kept(launch: Launch, engine: dockerd.Kind = docker._DOCKER) -> dict[str, Any]:
    """The HELLO of an agent that finds everything in force."""
    door: Any = type("Door", (), {"folder": Path("/ctl"), "nonce": "n"})
    host = docker.plan(launch, door, engine)["host_config"]
    uid, gid = docker.task_user(engine)
    return {
        "pid": 1, "uid": uid, "gid": gid, "groups": [gid] * bool(gid) + [int(each) for each in host["group_add"]],
        "owner": docker._owner(engine), "capabilities": 0, "capabilities_bounding": 0, "no_new_privileges": True,
        "seccomp": 2, "memory_limit_bytes": host["mem_limit"], "swap_limit_bytes": 0, "cpu_limit": 1.0,
        "pids_limit": host["pids_limit"], "root_read_only": True, "interfaces": [],
        "shm_bytes": -(-host["shm_size"] // 4096) * 4096, "tmp_bytes": docker._tmp_bytes(launch), "tmp_mode": 0o1777,
        "core": 0, "open_files": host["ulimits"][1]["Hard"],
        "writable_mounts": [], "writable_places": ["/dev/shm", "/task", "/tmp"],
        "gpus": {"nodes": [], "seen": [], "problem": ""},
    }  # fmt: skip


def test_a_memory_limit_is_asked_for_in_whole_pages(launch: Launch) -> None:
    """The kernel rounds down to pages; so do we, and the promise is kept to the byte."""
    door: Any = type("Door", (), {"folder": Path("/ctl"), "nonce": "n"})
    asked = docker.plan(launch, door)["host_config"]["mem_limit"]
    assert asked == 100_000_000 // os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PAGE_SIZE") < 100_000_000
    hello = kept(launch)
    assert hello["memory_limit_bytes"] == asked
    assert docker.broken_promises(launch, hello) == []
    assert docker.broken_promises(launch, {**hello, "memory_limit_bytes": 100_003_840}) != []
    unlimited = replace(launch, shape=replace(SHAPE, memory_limit_bytes=None))
    assert docker.broken_promises(unlimited, {**kept(unlimited), "memory_limit_bytes": None}) == []


@pytest.mark.parametrize(
    ("seen", "broken"),
    [
        ({"pid": 7}, "the agent is not PID 1"),
        ({"gid": 0}, "tasks run as "),
        ({"owner": 100999}, "what tasks write belongs to user 100999"),
        ({"groups": [0]}, "tasks are in root's group"),
        ({"capabilities": 1}, "capabilities were not dropped"),
        ({"capabilities_bounding": 0xA80425FB}, "capabilities could be gained again"),
        ({"no_new_privileges": False}, "`no-new-privileges` is not in force"),
        ({"seccomp": 0}, "system calls are not filtered (seccomp)"),
        ({"memory_limit_bytes": None}, "the limit of memory is none, not 99999744 bytes"),
        ({"swap_limit_bytes": 4096}, "tasks may use swap beside their memory (up to 4096 bytes)"),
        ({"cpu_limit": 2.0}, "the limit of cores is 2.0, not 1"),
        ({"cpu_limit": None}, "the limit of cores is none, not 1"),
        ({"pids_limit": None}, "the limit of processes is none"),
        ({"root_read_only": False}, "the root file system is writable"),
        ({"shm_bytes": 64 * 2**20}, "the size of /dev/shm is 67108864"),
        ({"tmp_bytes": None}, "the size of /tmp is none"),
        ({"tmp_mode": 0o755}, "not everybody may write to /tmp"),
        ({"core": -1}, "processes that crash may leave a core file"),
        ({"open_files": 17}, "the limit of open files is 17, not "),
        ({"writable_mounts": ["/db"]}, "`/db` can be written to"),
        ({"writable_places": ["/task", "/tmp", "/etc"]}, "`/etc` can be written to"),
    ],
)
def test_every_promise_that_is_not_kept_is_named(launch: Launch, seen: dict[str, Any], broken: str) -> None:
    """One fact at a time is other than was asked for, and one sentence says which."""
    told = docker.broken_promises(launch, {**kept(launch), **seen})
    assert len(told) == 1
    assert told[0].startswith(broken)


def test_a_network_counts_only_where_there_is_to_be_none(launch: Launch) -> None:
    """A slot that was asked for without a network, and has one, is refused; and the other way round it does no harm."""
    seen = {**kept(launch), "interfaces": ["eth0"]}
    assert docker.broken_promises(launch, seen) == []
    assert docker.broken_promises(replace(launch, network=False), seen) == ["there is a network (eth0)"]
    assert docker.broken_promises(replace(launch, network=False), kept(launch)) == []


def test_what_tasks_write_in_a_rootless_engine_belongs_to_who_called(launch: Launch) -> None:
    """In a rootless Docker the one who called is called root; his own id would be another user of this machine."""
    engine = dockerd.Kind(rootless=True)
    seen = kept(launch, engine)
    assert (seen["uid"], seen["owner"]) == (0, os.getuid())
    assert docker.broken_promises(launch, seen, engine) == []
    elsewhere = {**seen, "owner": 100000 + os.getuid()}
    assert docker.broken_promises(launch, elsewhere, engine) == [
        f"what tasks write belongs to user {100000 + os.getuid()}"
    ]


@pytest.mark.parametrize("lacking", ["folders", "prefix"])
def test_a_slot_that_cannot_be_started_is_the_machines_fault(tmp_path: Path, launch: Launch, lacking: str) -> None:
    """Whatever the file system refuses is told as that, and not as a bug of ours."""
    if lacking == "folders":
        (tmp_path / "slots").touch()

    async def start() -> None:
        await ProcessRuntime(tmp_path).start(launch)

    with pytest.raises(MachineError, match="leaf"):
        asyncio.run(start())


def test_closing_docker_hangs_up_on_who_is_left() -> None:
    """A slot that nobody stopped ends at once, and not only by force after a while."""

    async def close() -> list[str]:
        runtime: Any = docker.DockerRuntime.__new__(docker.DockerRuntime)
        container = docker._Container("c0ffee")
        hung_up = []

        class Slot:
            def hang_up(self) -> None:
                hung_up.append("c0ffee")
                runtime._notice("c0ffee", "die", "137")
                runtime._notice("c0ffee", "destroy", "")

        slot: Any = Slot()
        container.slot = slot
        runtime._containers = {"c0ffee": container}
        runtime._lost, runtime._returning, runtime._silent = "", None, False
        runtime._watch = runtime._threads = runtime._api = type("", (), {"close": print, "shutdown": print})()
        await asyncio.wait_for(runtime.close(), 2)
        assert runtime._containers == {}
        return hung_up

    assert asyncio.run(close()) == ["c0ffee"]


def test_many_trees_need_no_thread_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tree's end is heard of while others live, and the loop's own threads stay free."""
    monkeypatch.setattr(process_runtime, "_ENDS_S", 0.05)

    async def story() -> None:
        trees = [process_runtime._Tree(machine.spawn(["sleep", "60"])) for _ in range(40)]
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
        await asyncio.gather(*(tree.end() for tree in trees))
        assert all(tree.ended.is_set() for tree in trees)

    asyncio.run(story())


def test_a_tree_ends_with_all_that_is_below_it() -> None:
    """Where an agent does not end by itself, what it started does not outlive it, in whatever session it is."""
    script = "setsid sleep 61 & (setsid sleep 62 & sleep 63) & wait"

    async def story() -> list[int]:
        process = machine.spawn(["bash", "-c", script], stdin=subprocess.DEVNULL)
        tree = process_runtime._Tree(process)
        deadline = time.monotonic() + 5
        while len(below := kernel.descendants(process.pid)) < 4:
            assert time.monotonic() < deadline
        tree.kill()
        await asyncio.wait_for(tree.ended.wait(), 5)
        return below

    below = asyncio.run(story())
    deadline = time.monotonic() + 5
    while any(_lives(pid) for pid in below):
        assert time.monotonic() < deadline


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_line_knows_that_its_other_end_is_gone() -> None:
    """So that an idle slot whose agent died is not handed out."""

    async def story() -> list[bool]:
        ours, theirs = __import__("socket").socketpair()
        line = Line(ours)
        states = [line.is_open()]
        theirs.close()
        await asyncio.sleep(0.01)
        states.append(line.is_open())
        line.close()
        return states

    assert asyncio.run(story()) == [True, False]


def test_an_error_of_the_engine_without_words_has_a_name() -> None:
    """Where the engine says nothing, the class of the error does."""
    assert dockerd._reason(ConnectionError()) == "ConnectionError"
    assert dockerd._reason(ValueError("several\nlines")) == "lines"


def test_a_line_keeps_what_no_agent_says() -> None:
    """It closes, and the reason is there for whoever asks why."""

    async def story() -> str:
        ours, theirs = socket.socketpair()
        with theirs:
            line = Line(ours)
            theirs.sendall(b"\xff" * 64)
            assert await asyncio.wait_for(line.receive(), 5) is None
            return line.nonsense

    assert "is too large" in asyncio.run(story())
