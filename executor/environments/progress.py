"""How the making of environments is told, and stopped."""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from executor import machine

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_GRACE_S = 10.0
_SOON_S = 0.05


class Progress(Protocol):
    """Hears the steps of making environments: lock, base, download, install, compile, pack, load, verify, ready.

    What is known of their imports comes between `lock` and the rest: imports (in short), import (each), warning.
    """

    def __call__(self, environment: str, step: str, detail: str, done: float | None = None) -> None:
        """`detail` is one line for people; `done` the part of the step that is done, from 0 to 1, where it is known."""
        ...


class Say(Protocol):
    """The same for one environment."""

    def __call__(self, step: str, detail: str, done: float | None = None) -> None:
        """See `Progress`."""
        ...


class Stopped(BaseException):
    """Raised in a thread that works beside one that failed, when it next has something to say."""


def side_by_side(
    work: Callable[[_Job, Callable[[], None]], _Result], jobs: Sequence[_Job], at_once: int
) -> list[_Result]:
    """Do the work for every job, several at once; the results are in order. The first failure, or an interrupt, ends all.

    work: gets a job, and what raises `Stopped` once it should end; the programs that it runs are killed then, too
    """
    if len(jobs) <= 1:
        return [work(job, lambda: None) for job in jobs]
    crew = _Crew(work, jobs)
    threads = [threading.Thread(target=crew.run, daemon=True) for _ in range(min(at_once, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        return crew.results()
    except BaseException:
        crew.stop()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            while thread.is_alive() and time.monotonic() < deadline:
                machine.end_children()  # one of them may only now have started one
                thread.join(_SOON_S)
        raise


class _Crew(Generic[_Job, _Result]):
    """Jobs, and what came of them."""

    def __init__(self, work: Callable[[_Job, Callable[[], None]], _Result], jobs: Sequence[_Job]) -> None:
        self._work, self._count = work, len(jobs)
        self._waiting, self._stopped = collections.deque(enumerate(jobs)), threading.Event()
        self._ended = queue.SimpleQueue[tuple[int, _Result] | BaseException]()

    def run(self) -> None:
        """Do jobs until none is left; what fails is raised where all are waited for."""
        while not self._stopped.is_set():
            try:
                number, job = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._ended.put((number, self._work(job, self._check)))
            except BaseException as exc:  # noqa: BLE001
                self._ended.put(exc)

    def results(self) -> list[_Result]:
        """Wait for all; raises the first failure."""
        found: dict[int, _Result] = {}
        while len(found) < self._count:
            ended = self._ended.get()
            if isinstance(ended, BaseException):
                raise ended
            found[ended[0]] = ended[1]
        return [found[number] for number in range(self._count)]

    def stop(self) -> None:
        """Let nobody begin or go on."""
        self._stopped.set()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped
