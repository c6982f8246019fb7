"""What a task prints is in the record, byte for byte, however the task ends; with `-v` it is on the console, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.data.records import RunView, read_run
from tests.harness import Finished, MakeProject, RunLocal

Run = Callable[..., tuple[Finished, RunView]]

FLOW = """
    import ctypes
    import os
    import pathlib
    import signal
    import subprocess
    import sys
    import time

    from executor import Resources, TaskEnvironment

    env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="128Mi"))


    @env.task(timeout=3)
    def end(how: str) -> None:
        print("a line")
        print("and half a li", end="")
        print("stderr, too", end="", file=sys.stderr)
        sys.stdout.buffer.write(b"\\xff")
        if how == "exit":
            os._exit(3)
        if how == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "crash":
            ctypes.string_at(0)
        if how == "oom":
            bytearray(2**30)
        if how == "timeout":
            time.sleep(60)
        raise ValueError("this is not printed")


    @env.task
    def everything() -> None:
        for number in range(200):
            print("out", number)
            print("err", number, file=sys.stderr)
        os.write(1, bytes(range(256)) * 8 + b"\\n")
        print("\\udcff surrogate")


    @env.task
    def others() -> None:
        libc = ctypes.CDLL(None)
        print("python 1")
        libc.puts(b"c 1")
        print("python 2")
        libc.printf(b"c 2, unfinished")
        libc.fflush(None)
        print()
        subprocess.run(["/bin/sh", "-c", "echo child; (echo grandchild >&2)"], check=True)
        subprocess.Popen(["/bin/sh", "-c", "echo left behind; touch done; exec sleep 600"], start_new_session=True)
        while not pathlib.Path("done").exists():
            time.sleep(0.01)
        libc.printf(b"the last of c")


    @env.task(retries=2)
    def again() -> None:
        print("half a line", end="")
        raise ValueError("again")


    @env.task
    def flood(size: int) -> int:
        line = b"x" * 1023 + b"\\n"
        for _ in range(size // 1024):
            os.write(2, line)
        print("the end")
        return size


    @env.task
    def lines(count: int) -> float:
        began = time.monotonic()
        for number in range(count):
            print(number)
        return time.monotonic() - began


    @env.task
    def harm() -> None:
        print("\\x1b[2J\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07a\\x00b\\tc")
        print("10%\\r20%\\r30%")
        os.write(1, b"\\xff\\xfe no text\\n")
"""


@pytest.fixture
def run(run_local: RunLocal, project: MakeProject, runtime: str) -> Run:
    """`run("end", "--how", "exit")` runs a task with `-v`: how that ended, and its record."""
    root = project({"flow.py": FLOW}, {"leaf": ["python >=3.10"]})

    def call(*told: str, env: dict[str, str] | None = None) -> tuple[Finished, RunView]:
        done = run_local(*told, "-v", "--json", "--runtime", runtime, cwd=root, env=env, timeout_s=300)
        return done, read_run(run_local.home, json.loads(done.stdout)["run"])

    return call


def shown(done: Finished) -> list[str]:
    """The lines of the console that a task has written, as they came; the story of its failure tells the last again."""
    live = done.stderr.partition("\nerror: ")[0]
    return [line.partition("│ ")[2] for line in live.splitlines() if "│" in line]


@pytest.mark.parametrize("how", ["exit", "signal", "crash", "limit", "timeout", "raise"])
def test_the_last_words_of_a_task_are_kept(run: Run, runtime: str, how: str) -> None:
    """An unfinished line, too, that the task never flushed; as a process, it has no memory limit to die of."""
    how = how if how != "limit" else {"docker": "oom", "process": "signal"}[runtime]
    done, view = run("end", "--how", how)
    assert done.code == 1
    log = view.log("1").read_bytes()
    assert log.replace(b"stderr, too", b"") == b"a line\nand half a li\xff"
    assert b"stderr, too" in log
    assert shown(done)[0] == "a line"
    assert sorted(shown(done)[1:]) == ["and half a li\N{REPLACEMENT CHARACTER}", "stderr, too"]
    assert done.stderr.index("stderr, too") < done.stderr.index("✗")


def test_each_stream_is_in_order_and_byte_for_byte(run: Run) -> None:
    """Whatever the bytes are; and neither is in the middle of a line of the other."""
    done, view = run("everything")
    assert done.code == 0, done.stderr
    log = view.log("1").read_bytes()
    for stream in ("out", "err"):
        numbers = [line.split()[1] for line in log.splitlines() if line.startswith(stream.encode() + b" ")]
        assert numbers == [str(number).encode() for number in range(200)]
    assert bytes(range(256)) * 8 + b"\n" in log
    assert b"\n\\udcff surrogate\n" in log


def test_what_others_write_for_a_task_is_its_output(run: Run) -> None:
    """C code in its process, in the order in which it was called; children, theirs, and one that it leaves behind."""
    done, view = run("others")
    assert done.code == 0, done.stderr
    log = view.log("1").read_bytes().splitlines()
    assert [line for line in log if line != b"grandchild"] == [
        b"python 1", b"c 1", b"python 2", b"c 2, unfinished", b"child", b"left behind", b"the last of c",
    ]  # fmt: skip
    assert b"grandchild" in log


def test_attempts_have_logs_of_their_own(run: Run, run_local: RunLocal, tmp_path: Path) -> None:
    """And `logs` says which is which."""
    _, view = run("again")
    assert [view.log("1", attempt).read_bytes() for attempt in (1, 2, 3)] == [b"half a line"] * 3
    told = run_local("logs", view.id, cwd=tmp_path).stdout
    assert told == "== 1 leaf.again\n" + "".join(f"-- attempt {number}\nhalf a line\n" for number in (1, 2, 3))
    assert run_local("logs", view.id, "1", cwd=tmp_path).stdout == told.partition("\n")[2]


def test_what_is_too_much_is_not_kept_and_the_record_says_so(run: Run) -> None:
    """Both streams count; the task does not wait, and what it does afterwards counts all the same."""
    done, view = run("flood", "--size", "10240", env={"RUN_LOCAL_LOG_LIMIT": "5000"})
    assert done.document["result"] == 10240
    notice = "… output of this attempt beyond 5000 bytes is not kept"
    log = view.log("1").read_text()
    assert log == ("x" * 1023 + "\n") * 4 + "x" * (5000 - 4096) + f"\n{notice}\n"
    assert shown(done)[-1] == notice
    assert view.calls["1"].evidence["output_bytes"] == 10240 + len("the end\n")


def test_a_flood_ends_at_64_mib(run: Run) -> None:
    """Unless somebody says otherwise."""
    done, view = run("flood", "--size", str(300 * 2**20))
    assert done.document["result"] == 300 * 2**20
    notice = "… output of this attempt beyond 64 MiB is not kept\n".encode()
    assert view.log("1").stat().st_size == 64 * 2**20 + len(notice)
    assert view.log("1").read_bytes().endswith(b"x\n" + notice)
    assert done.seconds < 120


def test_the_console_is_not_harmed(run: Run) -> None:
    """What it shows moves no cursor; the record, and what is piped of it, is what was written."""
    done, view = run("harm")
    assert shown(done) == ["red ab\tc", "30%", "\N{REPLACEMENT CHARACTER}" * 2 + " no text"]
    written = b"\x1b[2J\x1b[31mred\x1b[0m \x1b]0;title\x07a\x00b\tc\n10%\r20%\r30%\n\xff\xfe no text\n"
    assert view.log("1").read_bytes() == written


def test_a_limit_that_is_none_is_refused(run_local: RunLocal, project: MakeProject) -> None:
    """Before anything is made."""
    root = project({"flow.py": FLOW}, {"leaf": ["nothing-like-this"]})
    done = run_local("flood", "--size", "1", cwd=root, env={"RUN_LOCAL_LOG_LIMIT": "much"})
    assert done.code == 2
    assert done.stderr == (
        "error: RUN_LOCAL_LOG_LIMIT is `much`\n"
        "  why: it is no amount of bytes\n"
        "  hint: write it like `512Mi`, `4Gi` or `2G`\n"
    )
