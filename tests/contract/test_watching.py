"""A run is watched while it goes on: on a terminal, and from another process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from executor.data.records import run_ids
from tests.harness import MakeProject, RunLocal

FLOW = """
    import asyncio
    import os
    import pathlib
    import sys
    import time

    from executor import Resources, TaskEnvironment

    leaf = TaskEnvironment("leaf", resources=Resources(cpu=0.1, memory="64Mi"))
    root = TaskEnvironment("root", depends_on=[leaf], resources=Resources(cpu=0.1, memory="64Mi"))


    @leaf.task
    def work(number: int) -> int:
        for line in range(50):
            print(f"line {line:02} of {number} " + "x" * 150)
        if number == 0:
            sys.stdout.write("half a line")
            sys.stdout.flush()
            time.sleep(2)
            print("\\x1b[2J and its end")
        return number


    @root.task
    async def several() -> list[int]:
        return list(await asyncio.gather(*(work.aio(number) for number in range(4))))
"""
LINES, COLUMNS = 12, 60


@pytest.fixture
def root(project: MakeProject) -> Path:
    """The project's folder."""
    return project({"flow.py": FLOW}, {"leaf": ["python >=3.11"], "root": ["python >=3.11"]})


def test_on_a_terminal_the_tree_stays_whole(run_local: RunLocal, root: Path) -> None:
    """It stands below the lines that tasks write, each of which is whole, and nothing of it is left at the end."""
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=10_000, ratio=0.001)
    seen: set[str] = set()
    with _on_terminal(run_local, root, screen, "several", "--runtime", "process", "-v") as (started, frames):
        for _ in frames:
            tops = [line for line in screen.display if re.match(r"\d+ (running|waiting)", line)]
            assert len(tops) <= 1, screen.display
            seen |= {line.strip() for line in screen.display}
        assert started.wait(60) == 0
    assert any(re.match(r"■ leaf .*running", line) for line in seen), seen
    assert any(re.match(r"▶ 1 several .* waits for \d call", line) for line in seen), seen
    rows = [*screen.history.top, *(screen.buffer[line] for line in range(LINES))]
    text = "\n".join("".join(row[at].data for at in range(COLUMNS)).rstrip() for row in rows)
    unfolded = text.replace("\n", "")
    for number in range(4):
        for line in range(50):
            assert f"work │ line {line:02} of {number} {'x' * 150}" in unfolded
    assert "work │ half a line and its end" in text
    assert "■" not in text
    assert not re.search(r"^\d+ running", text, re.MULTILINE)


def test_a_terminal_shows_how_much_memory_a_call_uses(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """While it runs: what its process holds, and what a process of that holds, beside what it asked for."""
    source = """
        import subprocess
        import sys
        import time

        from executor import Resources, TaskEnvironment

        env = TaskEnvironment("env", resources=Resources(cpu=0.1, memory="512Mi"))
        HOLD = "held = b'x' * {} * 2**20; import time; time.sleep(60)"


        @env.task
        def hold() -> None:
            with subprocess.Popen([sys.executable, "-c", HOLD.format(100)]):
                exec(HOLD.format(200))
    """
    root = project({"flow.py": source}, {"env": ["python >=3.11"]})
    before, screen = set(run_ids(run_local.home)), pyte.Screen(COLUMNS, LINES)
    row = re.compile(r"▶ 1 hold  \d+ s  (3\d\d\.\d) of 512 MiB")
    with _on_terminal(run_local, root, screen, "hold", "--runtime", runtime) as (started, frames):
        assert any(row.search("\n".join(screen.display)) for _ in frames), screen.display
        started.send_signal(signal.SIGINT)
        for _ in frames:
            pass
        assert started.wait(60) == 130
    [run] = set(run_ids(run_local.home)) - before
    journal = (run_local.home / "runs" / run / "journal.jsonl").read_text()
    assert "AttemptEnded" in journal
    assert "Measured" not in journal


@contextlib.contextmanager
def _on_terminal(
    run_local: RunLocal, root: Path, screen: pyte.Screen, *command: str
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[None]]]:
    """The command with a terminal of its own; the iterator brings the screen on by what has been written meanwhile."""
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    argv = [str(Path(sys.executable).with_name("run-local")), *command]
    variables = {**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):  # of the terminal that the tests run in
        variables.pop(name, None)
    started = subprocess.Popen(argv, cwd=root, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def frames() -> Iterator[None]:
        while data := _read(ours):
            stream.feed(data)
            yield

    try:
        yield started, frames()
    finally:
        started.kill()
        started.wait()
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # nobody has the other end open any more
        return b""


def test_logs_follow_a_run_until_it_ends(run_local: RunLocal, root: Path) -> None:
    """From another process: what is written comes before the run ends, all of it comes, and then the command ends."""
    before = set(run_ids(run_local.home))
    running = run_local.start("several", "--runtime", "process", "--json", cwd=root)
    run = _new_run(run_local.home, before)
    following = run_local.start("logs", run, "-f", cwd=root)
    one = run_local.start("logs", run, "1.1", "--follow", cwd=root)
    none = run_local.start("logs", run, "1.9", "-f", cwd=root)
    assert following.stdout is not None
    came: list[str] = []
    while not came or "line 49" not in came[-1]:
        came.append(following.stdout.readline())
        assert came[-1], came
    assert running.wait(60) == 0
    told = "".join(came) + following.stdout.read()
    assert following.wait(60) == 0
    for number in range(4):
        assert re.findall(rf"line (\d\d) of {number} x{{150}}\n", told) == [f"{line:02}" for line in range(50)]
        assert f"== 1.{number + 1} leaf.work\n" in told
    assert "half a line\x1b[2J and its end\n" in told
    assert one.communicate(timeout=60)[0] == run_local("logs", run, "1.1", cwd=root).stdout
    assert run_local("logs", run, "1.1", "-f", cwd=root).stdout == run_local("logs", run, "1.1", cwd=root).stdout
    assert "has no call `1.9`" in none.communicate(timeout=60)[1]
    assert none.returncode == 2


def _new_run(home: Path, before: set[str]) -> str:
    """The run that was not there before, once an attempt of it has started."""
    began = time.monotonic()
    while time.monotonic() - began < 60:
        for run in set(run_ids(home)) - before:
            if "AttemptStarted" in (home / "runs" / run / "journal.jsonl").read_text():
                return run
        time.sleep(0.05)
    raise AssertionError("no run has started")
