"""Values that are made to do harm, and more of them than is reasonable: nothing runs on the host, and nothing runs out."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from tests.faults.conftest import PYTHON
from tests.harness import SHARED_MEMORY, MakeProject, RunLocal

#: Open files that run-local may have where a machine is stingy.
FEW = 100

FLOW = """
    import os
    import pathlib
    import signal
    import sys
    import threading
    import time

    from executor import Resources, TaskEnvironment, TaskError

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="1Gi"))
    root_env = TaskEnvironment(
        "root", "envs/leaf/environment.yml", depends_on=[leaf_env], resources=Resources(cpu=0.5, memory="1Gi")
    )

    #: Writes down, where that can be written, who opened it: the process namespace, and whether that was run-local.
    NOTE = (
        "import os, sys\\nif os.path.isdir(os.path.dirname({0!r})): open({0!r}, 'a').write("
        "os.readlink('/proc/self/ns/pid') + str('executor.engine' in sys.modules) + chr(10))"
    )


    class Evil:
        def __init__(self, path):
            self.path = path

        def __reduce__(self):
            return (exec, (NOTE.format(self.path),))


    class EvilError(Exception):
        def __init__(self, path):
            super().__init__("evil")
            self.path = path

        def __reduce__(self):
            return (exec, (NOTE.format(self.path),))


    @leaf_env.task
    def make(path: str) -> object:
        return Evil(path)


    @leaf_env.task
    def take(thing: object) -> int:
        return 1


    @leaf_env.task
    def fail(path: str) -> None:
        raise EvilError(path)


    @root_env.task
    def give(path: str) -> object:
        return Evil(path)


    @root_env.task
    def throw(path: str) -> object:
        raise EvilError(path)


    @root_env.task
    def nest(path: str) -> object:
        try:
            fail(path)
        except TaskError:
            pass
        make(path)
        take(Evil(path))
        return [make(path), Evil(path)]


    @leaf_env.task
    def die_while_making(size: int) -> bytes:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            os.memfd_create("run-local value")
            made = bytearray(os.urandom(2**20) * (size // 2**20))


    @leaf_env.task
    def small(count: int) -> list:
        return [bytes([number % 256]) * 8 for number in range(count)]


    @leaf_env.task
    def middling(count: int) -> list:
        return [bytearray(5000) for number in range(count)]


    @leaf_env.task
    def large(number: int) -> bytearray:
        return bytearray(100_000 + number)


    @leaf_env.task
    def total(values: list) -> int:
        return sum(map(len, values))


    @root_env.task
    def die_often(times: int) -> int:
        died = 0
        for _ in range(times):
            try:
                die_while_making(32 * 2**20)
            except TaskError:
                died += 1
        return died


    @root_env.task
    def very_many(count: int) -> list:
        return [len(small(count)), len(middling(count // 10)), len(os.listdir("/proc/self/fd"))]


    @root_env.task
    def held(count: int) -> int:
        return total([large(number) for number in range(count)])
"""


@pytest.mark.parametrize("task", ["give", "throw", "nest"])
def test_nothing_that_a_task_pickles_runs_on_the_host(
    run_local: RunLocal, project: MakeProject, runtime: str, task: str, tmp_path: Path
) -> None:
    """Results, arguments and exceptions are bytes here: whoever opens one is a task, in its own slot."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    note = tmp_path / "opened"
    done = run_local(task, "--path", note, "--json", "--runtime", runtime, cwd=root)
    assert done.code == (1 if task == "throw" else 0), done.stderr
    for command in ("show", "logs"):
        assert run_local(command, done.document["run"], cwd=root).code == 0
    opened = note.read_text().splitlines() if note.exists() else []
    ours = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  it is no path
    assert [line for line in opened if line.startswith(ours) or line.endswith("True")] == []
    assert bool(opened) == (runtime == "process" and task == "nest")  # a container cannot even reach the place


def test_makers_that_die_leave_no_memory_behind(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Killed while they write a large value: their memory is the kernel's again; none of it ever had a name."""
    before = set(SHARED_MEMORY.iterdir())
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    done = run_local("die_often", "--times", "5", "--runtime", runtime, cwd=root)
    assert (done.code, done.stdout) == (0, "5\n"), done.stderr
    assert {path for path in set(SHARED_MEMORY.iterdir()) - before if "run-local" in path.name} == set()


def test_values_of_very_many_parts(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """A hundred thousand objects are one value, and ten thousand buffers one open file."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    done = run_local("very_many", "--count", "100000", "--json", "--runtime", runtime, cwd=root)
    assert done.code == 0, done.stderr
    small, middling, files = done.document["result"]
    assert (small, middling) == (100_000, 10_000)
    assert files < 30


def test_a_machine_that_lets_few_files_be_open(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """More large values than run-local may have files open: they are stored before others are made, and all arrive."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    process = run_local.start("held", "--count", "300", "--json", "--runtime", runtime, cwd=root)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (FEW, FEW))
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["result"] == sum(100_000 + number for number in range(300))
