"""Work side by side: in order, at once, and all of it ended by the first failure."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from executor import machine
from executor.environments.progress import side_by_side


def test_results_come_in_the_order_of_the_jobs() -> None:
    """Whichever ends first; with fewer threads than jobs, too."""

    def work(job: int, _: Callable[[], None]) -> int:
        time.sleep(0.002 * (5 - job))
        return job * 2

    assert side_by_side(work, range(5), 2) == [0, 2, 4, 6, 8]
    assert side_by_side(work, [3], 2) == [6]
    assert side_by_side(work, [], 2) == []


def test_jobs_are_done_at_once() -> None:
    """Two that wait for each other both end."""
    meeting = threading.Barrier(2, timeout=5)

    def work(_: int, __: Callable[[], None]) -> int:
        return meeting.wait()

    assert sorted(side_by_side(work, range(2), 2)) == [0, 1]


def test_the_first_failure_ends_the_others() -> None:
    """What it raised is raised; programs that others run are killed, and jobs that wait never begin."""
    begun: list[int] = []

    def work(job: int, _: Callable[[], None]) -> None:
        begun.append(job)
        if job == 0:
            while len(begun) < 2:
                time.sleep(0.001)
            raise ValueError("no")
        machine.run(["sleep", "60"])

    began = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        side_by_side(work, range(5), 2)
    assert time.monotonic() - began < 5
    assert sorted(begun)[:2] == [0, 1]
    assert len(begun) < 5


def test_an_interrupt_ends_work_that_only_talks() -> None:
    """It ends when it next asks whether it should."""
    ended = threading.Event()

    def work(job: int, check: Callable[[], None]) -> None:
        if job == 0:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(2), 2)
    assert ended.wait(5)
