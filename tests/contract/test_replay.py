"""One recorded call once more, a debugger where it fails, and a shell where it runs; on every runtime."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor.data.records import read_run
from tests.harness import MakeProject, RunLocal

PATIENCE_S = 60.0
FLOW = """
    import os
    import pathlib

    import executor

    leaf = executor.TaskEnvironment("leaf", resources=executor.Resources(memory="300Mi"), env_vars={"MODE": "slow"})
    root = executor.TaskEnvironment("root", depends_on=[leaf])


    @leaf.task
    def half(n: int, table: executor.File) -> int:
        rest = n % 2
        if rest:
            raise ValueError(f"{n} is odd")
        print("halving", os.environ["MODE"])
        return n // 2


    @leaf.task
    def vanish(n: int) -> int:
        os._exit(n)


    @leaf.task
    def unique() -> bytes:
        return os.urandom(8)


    @root.task
    def quarter(n: int, table: executor.File) -> int:
        unique()
        once = half.override(env_vars={"MODE": "fast"})(n, table)
        return half(once, table)
"""
ENVIRONMENTS = {"leaf": ["python"], "root": ["python"]}


@pytest.fixture
def root(project: MakeProject) -> Path:
    made = project({"flow.py": FLOW}, ENVIRONMENTS)
    (made / "table.csv").write_text("a,b\n")
    return made


def failed(run_local: RunLocal, root: Path, runtime: str) -> dict[str, Any]:
    done = run_local("quarter", "--n", "6", "--table", "table.csv", "--runtime", runtime, "--json", cwd=root)
    assert done.code == 1, done.stderr
    return done.document


def test_a_call_is_made_once_more(run_local: RunLocal, root: Path, runtime: str) -> None:
    """With the inputs and variables that it had, by the source that it had; what it calls is taken over."""
    first = failed(run_local, root, runtime)
    assert first["replay"] == f"run-local replay {first['run']} 1.3 --pdb"
    text = (root / "flow.py").read_text()
    (root / "flow.py").write_text("nothing")
    (root / "table.csv").unlink()

    done = run_local("replay", first["run"], "1.2", "-v", cwd=root)
    assert (done.code, done.stdout) == (0, "3\n")
    assert "halving fast" in done.stderr
    assert "it is the value of call 1.2" in done.stderr

    done = run_local("replay", first["run"], "1.1", cwd=root)
    assert "it is another value than that of call 1.1" in done.stderr

    again = run_local("replay", first["run"], "1.3", "--json", cwd=root)
    assert (again.code, again.document["error"]["message"]) == (1, "3 is odd")
    made, recorded = read_run(run_local.home, again.document["run"]).root_call, read_run(run_local.home, first["run"])
    assert made
    assert (made.arguments or {})["n"] == (recorded.calls["1.3"].arguments or {})["n"]

    whole = run_local("replay", first["run"], "--json", cwd=root).document
    assert [each["status"] for each in whole["calls"]] == ["failed", "cached", "cached", "failed"]
    fresh = run_local("replay", first["run"], "--no-cache", "--json", cwd=root).document
    assert [each["status"] for each in fresh["calls"]] == ["failed", "succeeded", "succeeded", "failed"]

    told = run_local("show", first["run"], cwd=root).stdout
    assert f"`{first['replay']}`" in told
    assert f"once more: call 1 of run {first['run']}" in run_local("show", "last", cwd=root).stdout

    (root / "flow.py").write_text(text.replace("if rest:", "if n > 100:"))
    edited = run_local("replay", first["run"], "1.3", "--edit", "--json", cwd=root)
    assert (edited.code, edited.document["result"]) == (0, 1)


def test_what_cannot_be_replayed_says_why(run_local: RunLocal, root: Path) -> None:
    first = failed(run_local, root, "process")
    assert "has no call `9`" in run_local("replay", first["run"], "9", cwd=root).stderr
    assert "goes with neither" in run_local("replay", first["run"], "--pdb", "--json", cwd=root).stderr
    assert "`-c` goes with no" in run_local("shell", "leaf", "-c", "true", "--", "false", cwd=root).stderr
    assert "there is no environment `stem`" in run_local("shell", "stem", cwd=root).stderr


class Seat:
    """Somebody at a terminal of 30 lines and 100 columns."""

    def __init__(self, run_local: RunLocal, *arguments: str, cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.settings: Callable[[], list[Any]] = lambda: termios.tcgetattr(self._ours)
        command = [str(Path(sys.executable).with_name("run-local")), *arguments]
        env = {**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home), "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, text=True
        )
        run_local.started.append(self.process)
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def type_what_fits(self, text: str) -> None:
        """Type as much of it as our own terminal takes within a second; the rest is lost."""
        os.set_blocking(self._ours, False)
        left, deadline = text.encode(), time.monotonic() + 1.0
        while left and time.monotonic() < deadline:
            try:
                left = left[os.write(self._ours, left) :]
            except BlockingIOError:
                time.sleep(0.02)
        os.set_blocking(self._ours, True)

    def see(self, text: str) -> None:
        """Wait until something new is shown."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._ours], [], [], max(0.0, left))
            assert ready, f"{text!r} was not shown:\n{self.seen}"
            with contextlib.suppress(OSError):
                self.seen += os.read(self._ours, 2**16).decode(errors="replace")
                continue
            raise AssertionError(f"{text!r} was not shown:\n{self.seen}")
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def end(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def sit(run_local: RunLocal, root: Path) -> Iterator[Callable[..., Seat]]:
    """Sits at a command."""
    seats: list[Seat] = []

    def start(*arguments: str) -> Seat:
        seats.append(Seat(run_local, *arguments, cwd=root))
        return seats[-1]

    yield start
    for seat in seats:
        seat.close()


def test_the_debugger_stops_where_a_task_fails(
    run_local: RunLocal, root: Path, runtime: str, sit: Callable[..., Seat]
) -> None:
    """In the user's own frame, with its variables; afterwards the terminal is as it was."""
    first = failed(run_local, root, runtime)
    seat = sit("replay", first["run"], "1.3", "--pdb")
    before = seat.settings()
    seat.see("(Pdb)")
    seat.type("p n, rest\n")
    seat.see("(3, 1)")
    seat.type("q\n")
    assert seat.end() == 0
    assert seat.settings() == before
    done = run_local("replay", first["run"], "1.2", "--pdb", cwd=root)
    assert (done.code, "it raised nothing" in done.stderr) == (0, True)


def test_the_debugger_hides_no_failure_that_it_cannot_stop_at(run_local: RunLocal, root: Path) -> None:
    first = run_local("vanish", "--n", "3", "--runtime", "process", "--json", cwd=root).document
    done = run_local("replay", first["run"], "--pdb", cwd=root)
    assert (done.code, "process ended before the task returned (exit 3)" in done.stderr) == (1, True)


def test_keys_that_nobody_reads_hold_up_nothing(sit: Callable[..., Seat]) -> None:
    """More is typed than a terminal takes while a program is busy with other things."""
    seat = sit("shell", "leaf", "--runtime", "process", "-c", "stty -echo raw; echo up; sleep 4; echo over; exit 5")
    seat.see("up")
    seat.type_what_fits("x" * 200_000)
    seat.see("over")
    assert seat.end() == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_shell_with_its_exit_code(run_local: RunLocal, root: Path, number: signal.Signals) -> None:
    with run_local.start("shell", "leaf", "--runtime", "process", "-c", "echo up; sleep 600", cwd=root) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 128 + number


def test_a_shell_is_where_the_call_runs(
    run_local: RunLocal, root: Path, runtime: str, sit: Callable[..., Seat]
) -> None:
    """The task runs there by what is printed; keys make signals there; its exit code is ours."""
    first = failed(run_local, root, runtime)
    seat = sit("replay", first["run"], "1.2", "--shell")
    seat.see("runs here with: python ")
    program = seat.seen.split()[0]
    seat.see("its inputs are in ")
    seat.type("stty size; echo MODE=$MODE\n")
    seat.see("30 100")
    seat.see("MODE=fast")
    seat.type(f"python {program}\n")
    seat.see("halving fast\r\n3\r\n")
    seat.type("sleep 600\n")
    time.sleep(0.3)  # a key that is typed before it sleeps interrupts nothing
    seat.type("\x03")
    seat.type("echo $((6*7)) again; exit 5\n")
    seat.see("42 again")
    assert seat.end() == 5


def test_a_shell_of_an_environment_takes_any_command(run_local: RunLocal, root: Path, runtime: str) -> None:
    """Without a terminal its streams are ours, and its exit code; it sees the project, and cannot change it."""
    code = "import flow, os; print(len(flow.__file__) > 0, os.getcwd() != '/'); raise SystemExit(7)"
    done = run_local("shell", "leaf", "--runtime", runtime, "--", "python", "-c", code, cwd=root)
    assert (done.code, done.stdout) == (7, "True True\n"), done.stderr
    done = run_local("shell", "leaf", "--runtime", runtime, "--", "no-such-program", cwd=root)
    assert (done.code, "`no-such-program` cannot be run" in done.stderr) == (127, True)
    done = run_local("shell", "leaf", "--runtime", runtime, "-c", "kill -9 $$", cwd=root)
    assert done.code == 137, done.stderr
    done = run_local("shell", "leaf", "--runtime", runtime, "-c", "kill -9 $PPID", cwd=root)
    assert (done.code, "run-local replay" in done.stderr) == (1, False), done.stderr
    touch = "import flow, pathlib; pathlib.Path(flow.__file__).write_text('')"
    done = run_local("shell", "leaf", "--runtime", runtime, "--", "python", "-c", touch, cwd=root)
    assert "Read-only file system" in done.stderr


def test_nothing_is_left_of_a_shell_whose_run_local_is_killed(
    run_local: RunLocal, root: Path, runtime: str, sit: Callable[..., Seat]
) -> None:
    """No container and no process: the fixture `run_local` looks for them."""
    seat = sit("shell", "leaf", "--runtime", runtime, "-c", "echo at work; sleep 600")
    seat.see("at work")
    os.kill(seat.process.pid, signal.SIGKILL)
    assert seat.end() == -signal.SIGKILL
