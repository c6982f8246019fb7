"""How an attempt can end, with the evidence, on every runtime; and what a caller, the console and the record are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from executor.console import render_failure
from tests.harness import Finished, MakeProject, RunLocal

Call = Callable[..., Finished]

PYTHON = ["python >=3.10"]
MIB = 2**20

FLOW = """
    import mmap
    import os
    import signal
    import subprocess
    import sys
    import threading
    import time

    from executor import Resources, TaskEnvironment, TaskError

    env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="96Mi", shm="16Mi"))
    root_env = TaskEnvironment(
        "root", image="envs/leaf/environment.yml", depends_on=[env], resources=Resources(cpu=0.5, memory="96Mi")
    )
    crowded = TaskEnvironment(
        "crowded", image="envs/leaf/environment.yml", resources=Resources(cpu=0.5, memory="1Gi")
    )
    EAT = "data = bytearray(400 * 2**20)"


    @env.task
    def die(how: str) -> int:
        for number in range(30):
            print(f"line {number}", flush=True)
        if how.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, how))
            time.sleep(60)
        os._exit(int(how))


    @env.task
    def eat(how: str) -> int:
        print("hungry", flush=True)
        if how == "itself":
            return len(bytearray(400 * 2**20))
        if how == "child":
            subprocess.run([sys.executable, "-c", EAT], check=True)
        if how == "shm":
            with open("/dev/shm/big", "wb") as file:
                while True:
                    file.write(bytes(2**20))
        if how == "map":
            with open("/dev/shm/big", "wb+") as file:
                file.truncate(64 * 2**20)
                mapped = mmap.mmap(file.fileno(), 64 * 2**20)
                mapped[:] = bytes(64 * 2**20)
        if how == "forgiven":
            return subprocess.run([sys.executable, "-c", EAT]).returncode
        raise AssertionError(how)


    @env.task(timeout=1)
    def late() -> None:
        print("begun", flush=True)
        time.sleep(60)


    @crowded.task
    def crowd() -> int:
        print("many", flush=True)
        waiting = threading.Event()
        made = []
        try:
            for _ in range(6000):
                made.append(threading.Thread(target=waiting.wait, daemon=True))
                made[-1].start()
        finally:
            waiting.set()
        return len(made)


    @root_env.task
    def catch(task: str, how: str) -> list:
        try:
            die(how) if task == "die" else eat(how) if task == "eat" else late()
        except TaskError as exc:
            return [exc.code, exc.facts["message"], exc.hint]
        return []
"""


@pytest.fixture
def call(run_local: RunLocal, project: MakeProject, runtime: str) -> Call:
    """`call("die", "--how", "3")` runs a task of the flow with `--json`."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})

    def run(*arguments: str) -> Finished:
        return run_local(*arguments, "--json", "--runtime", runtime, cwd=root, timeout_s=120)

    return run


def evidence(run_local: RunLocal, done: Finished) -> dict[str, Any]:
    """What the record knows of the first attempt that ended."""
    journal = run_local.home / "runs" / done.document["run"] / "journal.jsonl"
    facts = [json.loads(line) for line in journal.read_text().splitlines()]
    found: dict[str, Any] = next(fact for fact in facts if fact["fact"] == "AttemptEnded")
    return found


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("3", "exit", "the task's process ended before the task returned (exit 3)"),
        ("0", "exit", "the task's process ended before the task returned (exit 0)"),
        ("SIGSEGV", "signal", "the task was killed by SIGSEGV (signal 11)"),
        ("SIGBUS", "signal", "the task was killed by SIGBUS (signal 7)"),
        ("SIGKILL", "signal", "the task was killed by SIGKILL (signal 9)"),
        ("SIGTERM", "signal", "the task was killed by SIGTERM (signal 15)"),
    ],
)
def test_a_process_that_ends_by_itself(call: Call, run_local: RunLocal, how: str, code: str, message: str) -> None:
    """Its code or signal by name, and the last lines that it printed, on the console and in the record."""
    done = call("die", "--how", how)
    error = done.document["error"]
    assert (done.code, error["code"], error["message"]) == (1, code, message)
    ended = evidence(run_local, done)
    assert ended["outcome"] == code
    assert ended["evidence"]["log"].splitlines() == [f"line {number}" for number in range(20, 30)]
    assert "  the last that it printed:\n    │ line 20\n" in done.stderr
    assert "│ line 19" not in done.stderr
    if how == "SIGBUS":
        assert error["why"].startswith("/dev/shm is full?; it holds ")
        assert 'Resources(shm="' in error["hint"]
    if how == "SIGKILL":
        assert "run-local did not send it, and the kernel counts no process" in error["why"]


def test_a_timeout_says_its_limit(call: Call) -> None:
    """And a caller has it as its code."""
    done = call("late")
    assert done.document["error"]["message"] == "the task ran longer than its `timeout=` of 1 s"
    assert "│ begun" in done.stderr
    caught = call("catch", "--task", "late", "--how", "")
    assert caught.document["result"][0] == "timeout"


def test_a_caller_has_the_outcome_as_its_code(call: Call) -> None:
    """With the message and the hint."""
    done = call("catch", "--task", "die", "--how", "SIGSEGV")
    code, message, hint = done.document["result"]
    assert (code, message) == ("signal", "the task was killed by SIGSEGV (signal 11)")
    assert "crash in compiled code" in hint


@pytest.mark.parametrize("runtime", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
class TestMemory:
    """Only a container has a limit of its own."""

    @pytest.mark.parametrize("how", ["itself", "child"])
    def test_no_memory(self, call: Call, run_local: RunLocal, how: str) -> None:
        """The limit in force, the peak, who died, and what to write instead."""
        done = call("eat", "--how", how)
        error, found = done.document["error"], evidence(run_local, done)["evidence"]
        assert (done.code, error["code"]) == (1, "oom"), done.stderr
        assert error["message"] == "the task used more memory than the 96Mi that it may"
        assert found["memory_limit_bytes"] == 96 * MIB
        assert found["group_peak_bytes"] > 80 * MIB
        assert found["oom_task"] is (how == "itself")
        assert '`Resources(memory="192Mi")`' in error["hint"]
        assert '`Resources(memory=("96Mi", "384Mi"))`' in error["hint"]
        if how == "child":
            why = "a process that the task had started was killed by the kernel, and the task then ended with CalledProcess"
            assert error["why"].startswith(why)
            assert "subprocess.run" in error["traceback"]
        else:
            assert error["why"].startswith("the kernel killed the task itself")
            assert "│ hungry" in done.stderr

    def test_a_killed_child_that_is_forgiven(self, call: Call, run_local: RunLocal) -> None:
        """The task goes on and returns: it has its value, and a warning."""
        done = call("eat", "--how", "forgiven")
        assert (done.code, done.document["result"]) == (0, -9), done.stderr
        ended = evidence(run_local, done)
        assert (ended["outcome"], ended["evidence"]["oom_kills"]) == ("ok", 1)
        warning = (
            "a process that the task had started was killed for want of memory (the limit is 96Mi); the task went on"
        )
        assert warning in done.stderr

    def test_shared_memory_that_is_full(self, call: Call) -> None:
        """Written to, it is an error of the system's; mapped, it is SIGBUS, and /dev/shm is named with its size."""
        assert call("eat", "--how", "shm").document["error"]["message"] == "[Errno 28] No space left on device"
        error = call("eat", "--how", "map").document["error"]
        assert error["message"] == "the task was killed by SIGBUS (signal 7)"
        assert error["why"] == "/dev/shm is full?; it holds 16Mi"
        assert error["hint"] == 'give it more: `Resources(shm="32Mi")`'

    def test_too_many_threads(self, call: Call, run_local: RunLocal) -> None:
        """The failure is the task's own, and the evidence says which limit it met."""
        done = call("crowd")
        assert done.document["error"]["code"] == "RuntimeError", done.stderr
        found = evidence(run_local, done)["evidence"]
        assert found["pids_refused"] > 0
        assert found["pids_limit"] == 4096
        assert "the limit of 4096 processes and threads was met" in done.stderr


def test_what_a_task_printed_harms_no_terminal() -> None:
    """The last lines are shown as every other output is."""
    story = {"task": "a.f", "code": "exit", "message": "m", "log": "fine\n\x1b]0;title\x07\x1b[2Jbad\n"}
    shown = render_failure(story)
    assert "    │ fine\n    │ bad" in shown
    assert "\x1b" not in shown
