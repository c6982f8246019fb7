"""How far it is from a task to the end of its run, as past runs tell: what orders calls by the critical path."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple


class Recorded(NamedTuple):
    """A call of a past run that ran: when it started and ended, in seconds since whatever that run's clock counts from."""

    task: str
    started: float
    ended: float


def ranks(runs: Iterable[Iterable[Recorded]]) -> dict[str, float]:
    """Task → the median, over runs, of the seconds from its first start to the end of the last call of the run."""
    found: dict[str, list[float]] = {}
    for run in runs:
        calls = list(run)
        end = max((call.ended for call in calls), default=0.0)
        first: dict[str, float] = {}
        for call in calls:
            first[call.task] = min(first.get(call.task, call.started), call.started)
        for task, started in first.items():
            found.setdefault(task, []).append(end - started)
    return {task: statistics.median(seconds) for task, seconds in found.items()}
