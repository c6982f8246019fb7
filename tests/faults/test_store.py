"""The store and the record whatever happens to who writes: killed at any instruction, at once with others, or damaged."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor.data.records import read_run
from executor.data.store import Store
from tests.faults.conftest import PYTHON, Alive
from tests.harness import MakeProject, RunLocal

#: Commits values of many sizes, each kind of them, for as long as it may.
WRITER = """
import os
import sys
from pathlib import Path

from executor.data.store import Blob, Store
from executor.worker import memory

home = Path(sys.argv[1])
store = Store(home, home / "incoming" / str(os.getpid()))
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    data = (b"%d " % number) * 60_000
    store.put_bytes(data[: 7 * number])
    Blob(fd=memory.make_sealed([data], len(data))).commit(store)
    path = store.new_path()
    path.write_bytes(b"file" + data)
    Blob(path=path).commit(store)
print("done", flush=True)
"""


def writer(home: Path, values: int) -> subprocess.Popen[str]:
    """A process that commits values."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home), str(values)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def demand_whole(home: Path) -> int:
    """Every file of the store has the content that its name says, and nobody may write to it. How many there are."""
    files = [path for path in (home / "store").rglob("*") if path.is_file()]
    assert [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() != path.name] == []
    assert [path for path in files if path.stat().st_mode & 0o222] == []
    return len(files)


def test_a_value_is_whole_or_not_there(tmp_path: Path) -> None:
    """Writers are killed at random moments: what has its final name is what that says; the next one finishes."""
    moments = random.Random(7)
    seen = 0
    for _ in range(20):
        with writer(tmp_path, 10_000) as process:
            time.sleep(moments.uniform(0.0, 0.1))
            process.kill()
        seen = max(seen, demand_whole(tmp_path))
    assert seen > 3
    with writer(tmp_path, 5) as process:
        assert process.communicate()[0] == "done\n"
    demand_whole(tmp_path)


@pytest.mark.parametrize("instruction", ["before", "after"])
def test_killed_between_writing_and_renaming(tmp_path: Path, instruction: str) -> None:
    """The moment itself: without its name there is no value; with it there is, whole, though nobody was told."""
    code = f"""
import os, pathlib, signal, sys
from pathlib import Path
from executor.data.store import Store

renaming = pathlib.Path.replace
def replace(self, target):
    if {instruction == "after"}:
        renaming(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = replace
home = Path(sys.argv[1])
Store(home, home / "incoming").put_bytes(b"value")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert demand_whole(tmp_path) == (instruction == "after")
    store = Store(tmp_path, tmp_path / "incoming")
    assert store.path(store.put_bytes(b"value")).read_bytes() == b"value"


def test_the_same_content_from_several_at_once(tmp_path: Path) -> None:
    """Each commit succeeds, there is one file of each, and nothing unfinished is left."""
    writers = [writer(tmp_path, 40) for _ in range(4)]
    assert [process.communicate()[0] for process in writers] == ["done\n"] * 4
    assert [process.returncode for process in writers] == [0] * 4
    assert demand_whole(tmp_path) == 3 * 40
    assert [path for path in (tmp_path / "incoming").rglob("*") if path.is_file()] == []


FLOW = """
    import os
    import pathlib
    import time

    from executor import Resources, TaskEnvironment

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.2, memory="256Mi"))
    root_env = TaskEnvironment("root", "envs/leaf/environment.yml", depends_on=[leaf_env], resources=Resources(cpu=0.2))


    @leaf_env.task
    def make(number: int) -> bytes:
        return bytes([number % 256]) * 200_000


    @root_env.task
    def many(count: int) -> int:
        return sum(len(make(number)) for number in range(count))


    @root_env.task
    def one() -> pathlib.Path:
        made = pathlib.Path("made.txt")
        made.write_text("original" * 1000)
        return made
"""


def test_what_the_record_speaks_of_is_in_the_store(
    run_local: RunLocal, project: MakeProject, runtime: str, alive: Alive
) -> None:
    """A run is killed while values come and go: each call that the journal calls ended has its value, and it is whole."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    process = run_local.start("many", "--count", "100000", "-v", "--runtime", runtime, cwd=root)
    assert process.stderr is not None
    told = iter(process.stderr)
    run = next(found[0] for line in told if (found := re.search(r"\d{8}-\d{6}-[0-9a-f]{4}", line)))
    assert any("✓ 1.5 " in line for line in told)
    process.kill()
    process.communicate()
    assert alive.after(2.0) == []
    view = read_run(run_local.home, run)
    ended = [call for call in view.calls.values() if call.status == "succeeded"]
    assert len(ended) >= 3  # the last ones were on their way into the store
    store = Store(run_local.home, run_local.home / "tmp")
    for call in ended:
        assert call.value is not None
        path = store.path(call.value["sha256"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.stat().st_size == call.value["size"]
    assert view.status == "interrupted"
