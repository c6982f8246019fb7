"""The calls of a run as a terminal shows them."""

from __future__ import annotations

import pytest

from executor.console.tree import CallTree
from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    CallWaiting,
    EnvironmentReady,
    MemoryMeasured,
    Outcome,
    Status,
)
from executor.manifest import Shape

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


class Tree:
    """A tree with a clock of its own, and short ways to tell it facts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tree = CallTree(lambda: self.now)

    def submit(self, call: str, task: str) -> None:
        parent = call.rpartition(".")[0] or None
        environment = task.partition(".")[0]
        self.tree.take(CallSubmitted(call=call, parent=parent, task=task, environment=environment, shape=SHAPE))

    def start(self, call: str, attempt: int = 1, gpus: tuple[str, ...] = (), memory_bytes: int | None = None) -> None:
        self.tree.take(AttemptStarted(call=call, attempt=attempt, container=None, gpus=gpus, memory_bytes=memory_bytes))

    def measure(self, call: str, used_bytes: int) -> None:
        self.tree.take(MemoryMeasured(call=call, used_bytes=used_bytes))

    def stop(self, call: str, outcome: Outcome = "ok", peak_bytes: int = 0) -> None:
        evidence = {"peak_bytes": peak_bytes}
        self.tree.take(AttemptEnded(call=call, attempt=1, outcome=outcome, seconds=1, evidence=evidence))

    def end(self, call: str, status: Status = "succeeded", message: str = "") -> None:
        error = {"code": "ValueError", "message": message} if message else None
        self.tree.take(CallEnded(call=call, status=status, error=error))

    def shown(self, height: int = 24, width: int = 100) -> list[str]:
        return [row.plain for row in self.tree.rows(height, width)]


def test_calls_stand_below_their_environments() -> None:
    """What runs, for how long, on what, for whom it waits; what waits, and why; what failed."""
    tree = Tree()
    tree.submit("1", "flow.main")
    tree.start("1")
    for number in range(1, 5):
        tree.submit(f"1.{number}", "fold.predict")
    tree.now = 60.0
    tree.start("1.1", 2, ("GPU-3f2a9999-1",))
    tree.tree.take(CallWaiting(call="1.2", reason="NVIDIA A (GPU-3f2a9999) is held by run 9c of alice"))
    tree.start("1.3")
    tree.stop("1.3", peak_bytes=300 * 2**20)
    tree.end("1.3")
    tree.start("1.4")
    tree.stop("1.4", "raised")
    tree.end("1.4", "failed", "no such\nchain")
    tree.now = 65.0
    assert tree.shown() == [
        "2 running, 1 waiting, 1 succeeded, 1 failed  1:05",
        "  ■ flow  1 running",
        "    ▶ 1 main  1:05  waits for 2 calls",
        "  ■ fold  1 running, 1 waiting, 1 succeeded, 1 failed",
        "    ✗ 1.4 predict  ValueError: no such",
        "    ▶ 1.1 predict  5 s  attempt 2  on GPU-3f2a",
        "    predict: 1 running, 1 waiting, 1 succeeded, 1 failed, at most 300 MiB each",
        "    · 1.2 predict  1:05  waits: NVIDIA A (GPU-3f2a9999) is held by run 9c of alice",
    ]


def test_what_a_call_uses_of_memory_stands_beside_what_it_may() -> None:
    """As it was told last, in a unit that fits; of an attempt that begins nothing is known."""
    tree = Tree()
    for number, limit in enumerate([None, 512 * 2**20, 16 * 2**30], start=1):
        tree.submit(str(number), "fold.predict")
        tree.start(str(number), memory_bytes=limit)
    assert [row.split("  ")[-1] for row in tree.shown()[2:5]] == ["0 s"] * 3
    for number in range(1, 4):
        tree.measure(str(number), 2**20)
        tree.measure(str(number), 400 * 2**20)
    told = [row.rpartition("  ")[2] for row in tree.shown()[2:5]]
    assert told == ["400.0 MiB", "400.0 of 512 MiB", "0.4 of 16 GiB"]
    tree.stop("2", "oom")
    tree.start("2", 2)
    assert [row for row in tree.shown() if "▶ 2" in row] == ["    ▶ 2 predict  0 s  attempt 2"]


def test_a_call_that_is_retried_says_how_its_attempt_ended() -> None:
    """Until the next one begins."""
    tree = Tree()
    tree.submit("1", "flow.main")
    tree.start("1")
    tree.stop("1", "oom")
    assert tree.shown()[-1] == "    · 1 main  0 s  waits: attempt 1 ended with oom"
    tree.start("1", 2)
    assert tree.shown()[-1] == "    ▶ 1 main  0 s  attempt 2"


def test_environments_that_are_made_show_how_far_they_are() -> None:
    """Before there is any call; and no longer once they are ready."""
    tree = Tree()
    tree.tree.building("fold", "fetching \x1b[31mnumpy", 0.5)
    tree.tree.building("plot", "solving", None)
    assert tree.shown() == ["  ■ fold  ━━━━━━━━╌╌╌╌╌╌╌╌ fetching  [31mnumpy", "  ■ plot  solving"]
    tree.tree.take(EnvironmentReady(environment="fold", key="k", python="3.11", seconds=1))
    tree.tree.built("plot")
    assert tree.shown() == []


@pytest.mark.parametrize("height", [0, 1, 2, 5, 10, 24])
def test_many_calls_are_counted_and_fit(height: int) -> None:
    """Ten thousand calls in 60 environments: never higher or wider than there is room, and failures come first."""
    tree = Tree()
    tree.submit("1", "flow.main")
    tree.start("1")
    for number in range(10_000):
        call = f"1.{number}"
        tree.submit(call, f"e{number % 60}.work{number % 7}")
        if number % 2:
            tree.start(call)
        if number % 1000 == 1:
            tree.end(call, "failed", "x" * 500)
    shown = tree.shown(height, 60)
    assert len(shown) == height or height > 24
    assert all(len(row) <= 60 for row in shown)
    assert height == 0 or shown[0].startswith("4991 running, 5000 waiting, 10 failed")


def test_of_few_environments_and_many_calls_each_kind_has_rows() -> None:
    """The failed and the running ones before the counts, and what waits with a reason last."""
    tree = Tree()
    tree.submit("1", "flow.main")
    for number in range(3000):
        tree.submit(f"1.{number}", f"fold.work{number % 3}")
        if number < 1000:
            tree.start(f"1.{number}")
        elif number < 2000:
            tree.end(f"1.{number}", "failed", "why")
        else:
            tree.tree.take(CallWaiting(call=f"1.{number}", reason="a GPU"))
    marks = "".join(row.strip()[0] for row in tree.shown(24))
    assert marks == "1■■" + marks.count("✗") * "✗" + marks.count("▶") * "▶" + "www" + marks.count("·") * "·"
    assert min(marks.count(each) for each in "✗▶·") >= 2
    assert len(marks) == 24
