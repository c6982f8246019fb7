"""A disk that is full: the error names it, nothing half-made stays, and it works once there is room."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import PYTHON, Index
from tests.harness import Finished, MakeProject, RunLocal, remove_tree

MIB = 2**20
FLOW = """
    from executor import Resources, TaskEnvironment

    env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"))
    slow = TaskEnvironment("slow")


    @env.task
    def big(mib: int) -> bytearray:
        return bytearray(mib * 2**20)


    @env.task
    def scribble(mib: int) -> int:
        with open("much", "wb") as file:
            for _ in range(mib):
                file.write(bytes(2**20))
        return mib


    @slow.task
    def work() -> int:
        return 1
"""
FULL = "No space left on device"


@dataclass(frozen=True)
class Disk:
    """A small disk, that a test fills and gives room again."""

    path: Path

    @property
    def home(self) -> Path:
        """The RUN_LOCAL_HOME on it."""
        return self.path / "home"

    def fill(self, but: int) -> None:
        """Leave only so many bytes free."""
        assert os.path.ismount(self.path)
        free = shutil.disk_usage(self.path).free
        with (self.path / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - but)

    def fill_with_files(self, but: int) -> None:
        """Leave room for so many files only, however small they are."""
        assert os.path.ismount(self.path)
        (self.path / "ballast").mkdir()
        for number in range(os.statvfs(self.path).f_favail - but):
            (self.path / "ballast" / str(number)).touch()

    def free(self) -> None:
        """Make room."""
        remove_tree(self.path / "ballast")

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nobody write to it."""
        for mode in ("ro", "rw"):
            subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)
            if mode == "ro":
                yield

    def half_made(self) -> list[str]:
        """What nobody will ever look at again."""
        homes = [*self.home.glob("tmp/*"), *self.home.glob("*/half-*"), *self.home.glob("runs/*/slots/*")]
        return [str(path.relative_to(self.home)) for path in homes]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 1 GiB, in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1g,mode=0755,nr_inodes=20000", "tmpfs"]
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        assert os.path.ismount(path), "the test would fill the real disk"
        yield Disk(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)


@dataclass(frozen=True)
class OnDisk:
    """The command with its home on the disk."""

    run_local: RunLocal
    root: Path
    disk: Disk
    runtime: str

    def __call__(self, *arguments: str, index: Index | None = None) -> Finished:
        env = {"RUN_LOCAL_HOME": str(self.disk.home), **(index.variables if index else {})}
        runtime = [] if arguments[0] in ("runs", "show", "du", "gc", "pin", "doctor") else ["--runtime", self.runtime]
        return self.run_local(*arguments, *runtime, cwd=self.root, env=env)


def demand_named(done: Finished, *codes: int) -> None:
    """The error names the disk, and is no accident of ours."""
    assert done.code in codes, done.stderr
    assert FULL in done.stderr or "make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug of ours" not in done.stderr


@pytest.fixture
def call(run_local: RunLocal, project: MakeProject, disk: Disk, index: Index, runtime: str) -> OnDisk:
    """`call("big", "--mib", "1")` with everything on the small disk."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "slow": index.spec})
    return OnDisk(run_local, root, disk, runtime)


def test_full_at_every_step(call: OnDisk, disk: Disk, index: Index) -> None:
    """No room for a record, a lock, an environment or a value: each by name, and each works once there is room."""
    for free in (0, 64 * 1024):
        disk.fill(but=free)
        demand_named(call("big", "--mib", "1"), 3, 4)
        assert disk.half_made() == []
        disk.free()
    assert call("big", "--mib", "0").code == 0

    disk.fill(but=4 * MIB)
    demand_named(call("big", "--mib", "16"), 1, 4)
    assert disk.half_made() == []
    disk.free()
    done = call("big", "--mib", "16")
    assert done.code == 0, done.stderr

    index.size = 16 * MIB
    before = list(disk.home.glob("prefixes/*/bin"))
    disk.fill(but=6 * MIB)
    demand_named(call("work", index=index), 3, 4)
    assert disk.half_made() == []
    assert list(disk.home.glob("prefixes/*/bin")) == before
    disk.free()
    done = call("work", index=index)
    assert done.code == 0, done.stderr


def test_a_disk_refuses_in_other_ways(call: OnDisk, disk: Disk) -> None:
    """Where a task works, for another file, or at all: by name, nothing half-made stays, and each works afterwards."""
    done = call("scribble", "--mib", "1")
    assert done.code == 0, done.stderr
    disk.fill(but=8 * MIB)
    done = call("scribble", "--mib", "64")  # the task gets the error, as it would anywhere
    assert done.code == 1, done.stderr
    assert f"failed: OSError: [Errno 28] {FULL}" in done.stderr
    assert disk.half_made() == []
    assert call("scribble", "--mib", "2").code == 0
    disk.free()

    for left in (0, 5, 10):
        disk.fill_with_files(but=left)
        demand_named(call("big", "--mib", "1"), 1, 3, 4)
        assert disk.half_made() == []
        disk.free()
    done = call("big", "--mib", "1")
    assert done.code == 0, done.stderr

    records = call("runs").stdout
    with disk.read_only():
        done = call("big", "--mib", "1")
        assert done.code == 4, done.stderr
        assert "Read-only file system" in done.stderr
        assert "bug of ours" not in done.stderr
        assert call("runs").stdout == records
        assert call("show", "last").code == 0
        assert call("du").code == 0
        for command in (("gc", "--keep-last", "0"), ("pin", "last"), ("doctor", "--rebuild")):
            done = call(*command)
            assert done.code in (2, 4), done.stderr
            assert "bug of ours" not in done.stderr
    assert call("big", "--mib", "1").code == 0


def test_room_is_made_where_there_is_none(call: OnDisk, disk: Disk) -> None:
    """What cleans up, and what says what there is, needs no room itself."""
    assert call("big", "--mib", "1").code == 0
    disk.fill(but=0)
    for command in (("runs",), ("show", "last"), ("du",)):
        done = call(*command)
        assert done.code == 0, done.stderr
    done = call("gc", "--keep-last", "0")
    assert done.code == 0, done.stderr
    assert "run " in done.stdout
    assert "no runs yet" in call("runs").stdout
    assert list(disk.home.glob("store/sha256/*/*")) == []
