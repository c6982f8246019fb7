"""Failures as their callers and their users see them, on every runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.harness import Finished, MakeProject, RunLocal

Call = Callable[..., Finished]

FLOW = """
    import executor
    from executor import TaskEnvironment, TaskError

    leaf = TaskEnvironment("leaf", "envs/plain/environment.yml")
    middle = TaskEnvironment("middle", "envs/plain/environment.yml", depends_on=[leaf])
    root = TaskEnvironment("root", "envs/plain/environment.yml", depends_on=[middle, leaf])


    class BadRead(Exception):
        def __init__(self, read, place):
            super().__init__(f"{read} at {place}")
            self.read, self.place = read, place


    @leaf.task
    def read(text: str) -> int:
        if text == "X":
            raise BadRead(text, 7)
        return len(text)


    @middle.task
    def through(text: str) -> int:
        return read(text)


    @root.task
    def three_levels(text: str = "X") -> list:
        try:
            through(text)
        except TaskError as error:
            return [error.code, error.task, type(error.original).__name__, error.original.place, str(error.original)]
        return []


    @root.task
    def made_worse(text: str = "X") -> int:
        try:
            return read(text)
        except TaskError as error:
            raise RuntimeError("sample S1 failed") from error


    @root.task
    def mapped(strict: bool = False) -> list:
        got = list(executor.map(read, ["A", "X"], return_exceptions=not strict))
        return [type(each).__name__ for each in got]


    @root.task
    def unpicklable():
        return (n for n in range(3))


    @root.task
    def unpicklable_argument() -> int:
        import threading
        return same(threading.Lock())


    @leaf.task
    def same(value):
        return value


    if __name__ == "__main__":
        try:
            executor.run(through, "X").result()
        except TaskError as error:
            print(error.code, type(error.original).__name__, error.original.place)
"""


@pytest.fixture
def call(run_local: RunLocal, project: MakeProject, runtime: str) -> Call:
    root = project({"flow.py": FLOW}, {"plain": ["python >=3.10"]})
    return lambda *arguments: run_local(*arguments, "--runtime", runtime, cwd=root)


def test_a_caller_knows_what_went_wrong_however_deep(call: Call) -> None:
    """The innermost class name and the exception itself, also where its `__init__` asks for more than its text."""
    done = call("three_levels", "--json")
    assert done.code == 0, done.stderr
    assert done.document["result"] == ["BadRead", "middle.through", "BadRead", 7, "X at 7"]


def test_what_a_caller_makes_of_a_failure_is_told(call: Call) -> None:
    """Innermost first, then what was raised instead, and where."""
    done = call("made_worse")
    assert done.code == 1
    story = done.stderr[done.stderr.index("error: ") :]
    assert story.startswith("error: task `leaf.read` failed: BadRead: X at 7")
    assert 'called by `root.made_worse`, call 1, "flow.py", line 41, in made_worse' in story
    assert "which made of it RuntimeError: sample S1 failed" in story


def test_a_failure_in_a_map_is_told_with_the_users_line(call: Call) -> None:
    """Returned, and then found in the record; or raised, with the line that took the values."""
    done = call("mapped", "--json")
    assert done.document["result"] == ["int", "TaskError"]
    assert [each["error"]["code"] for each in done.document["calls"] if each["status"] == "failed"] == ["BadRead"]
    strict = call("mapped", "--strict")
    assert strict.code == 1
    assert 'called by `root.mapped`, call 1, "flow.py", line 46, in mapped' in strict.stderr


@pytest.mark.parametrize(
    ("task", "what"),
    [
        ("unpicklable", "the value of `root.unpicklable` cannot be sent"),
        ("unpicklable_argument", "an argument of `leaf.same` cannot be sent"),
    ],
)
def test_what_cannot_be_pickled_is_named(call: Call, task: str, what: str) -> None:
    """With what it is, why, and what can be."""
    done = call(task)
    assert done.code == 1
    assert f"NotPicklable: {what}" in done.stderr
    assert "why: TypeError: cannot pickle" in done.stderr
    assert "plain data, arrays" in done.stderr


def test_a_script_gets_the_exception_itself(run_local: RunLocal, project: MakeProject) -> None:
    """As a task would."""
    root = project({"flow.py": FLOW}, {"plain": ["python >=3.10"]})
    done = subprocess.run(
        [sys.executable, "flow.py"],
        cwd=root,
        env={**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "BadRead BadRead 7\n", done.stderr
