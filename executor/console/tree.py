"""The calls of a run that goes on, as a tree by environment that fits on a screen.

A fact costs the same however many calls there are. Of many calls the counts are shown by task and state, and of single
calls those that failed first, then those that run, then those that say what they wait for, as far as there is room.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rich.text import Text

from executor.events import (
    AttemptDeferred,
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    CallWaiting,
    EnvironmentReady,
    Fact,
    MemoryMeasured,
)

_MOST_FAILED = 100
_LOOKED_AT = 500  # single calls of a kind and an environment, at most, each time that the tree is drawn
_STYLES = {"running": "", "waiting": "dim", "succeeded": "green", "cached": "cyan", "failed": "red"}
_STYLES["cancelled"] = "yellow"
_BAR = 16


@dataclass(slots=True)
class _Call:
    name: str
    parent: str | None
    environment: str
    task: str
    since: float
    state: str = "waiting"
    reason: str = ""
    attempt: int = 1
    gpus: tuple[str, ...] = ()
    used_bytes: int = 0  # of memory, where that is known
    limit_bytes: int | None = None
    inner: int = 0  # calls of its own that have not ended


@dataclass(slots=True)
class _Task:
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    peak_bytes: int = 0


@dataclass(slots=True)
class _Environment:
    tasks: dict[str, _Task] = field(default_factory=dict)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    running: dict[str, _Call] = field(default_factory=dict)
    blocked: dict[str, _Call] = field(default_factory=dict)  # those that wait with a reason
    failed: collections.deque[tuple[str, str, str]] = field(
        default_factory=lambda: collections.deque(maxlen=_MOST_FAILED)
    )
    step: tuple[str, float | None] | None = None  # of making it: what is done, and how much of that


class CallTree:
    """What is known of the calls of a run; not for several threads at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._environments: dict[str, _Environment] = {}
        self._calls: dict[str, _Call] = {}  # that have not ended
        self._counts: collections.Counter[str] = collections.Counter()

    def building(self, environment: str, detail: str, done: float | None) -> None:
        """A step of making an environment; `done` is a share of 1, where that is known."""
        self._environment(environment).step = (detail, done)

    def built(self, environment: str) -> None:
        """No step of making this environment goes on."""
        self._environment(environment).step = None

    def take(self, fact: Fact) -> None:
        """Take note of a fact."""
        match fact:
            case EnvironmentReady():
                self.built(fact.environment)
            case CallSubmitted():
                self._submitted(fact)
            case CallWaiting() if fact.call in self._calls:
                self._block(self._calls[fact.call], fact.reason)
            case AttemptStarted() if fact.call in self._calls:
                call = self._calls[fact.call]
                call.attempt, call.gpus, call.since = fact.attempt, fact.gpus, self._clock()
                call.used_bytes, call.limit_bytes = 0, fact.memory_bytes
                self._move(call, "running")
            case MemoryMeasured() if fact.call in self._calls:
                self._calls[fact.call].used_bytes = fact.used_bytes
            case AttemptEnded() if fact.call in self._calls:
                self._attempt_ended(self._calls[fact.call], fact)
            case AttemptDeferred() if fact.call in self._calls:
                self._move(self._calls[fact.call], "waiting")
            case CallEnded() if fact.call in self._calls:
                self._ended(fact)

    def rows(self, height: int, width: int) -> list[Text]:
        """The tree in at most so many lines of at most so many cells; none where nothing goes on."""
        if not self._calls and not any(each.step for each in self._environments.values()):
            return []
        shown = [(name, each) for name, each in self._environments.items() if each.step or any(each.counts.values())]
        shown.sort(key=lambda pair: not (pair[1].step or pair[1].counts["running"] or pair[1].counts["waiting"]))
        head = (
            [Text.assemble(_counted(self._counts), f"  {_duration(self._clock() - self._began)}")]
            if self._calls
            else []
        )
        room = height - len(head)
        shown = shown[: max(room, 0)]
        inside = self._inside(dict(shown), room - len(shown))
        rows = head
        for name, each in shown:
            rows.append(self._heading(name, each))
            rows += inside[name]
        for row in rows:
            row.truncate(width, overflow="ellipsis")
        return rows[: max(height, 0)]

    def _environment(self, name: str) -> _Environment:
        if name not in self._environments:
            self._environments[name] = _Environment()
        return self._environments[name]

    def _submitted(self, fact: CallSubmitted) -> None:
        call = _Call(fact.call, fact.parent, fact.environment, fact.task, self._clock(), state="")
        self._calls[fact.call] = call
        if fact.parent in self._calls:
            self._calls[fact.parent].inner += 1
        self._move(call, "waiting")

    def _attempt_ended(self, call: _Call, fact: AttemptEnded) -> None:
        task = self._environment(call.environment).tasks[call.task]
        task.peak_bytes = max(task.peak_bytes, int(fact.evidence.get("peak_bytes") or 0))
        self._move(call, "waiting")
        if fact.outcome != "ok":
            self._block(call, f"attempt {fact.attempt} ended with {fact.outcome}")

    def _ended(self, fact: CallEnded) -> None:
        call = self._calls.pop(fact.call)
        if call.parent in self._calls:
            self._calls[call.parent].inner -= 1
        self._move(call, fact.status)
        if fact.status == "failed" and fact.error:
            message = f"{fact.error.get('code', '')}: {fact.error.get('message', '')}"
            self._environment(call.environment).failed.append((call.name, call.task, _one_line(message)))

    def _block(self, call: _Call, reason: str) -> None:
        call.reason = reason
        self._environment(call.environment).blocked[call.name] = call

    def _move(self, call: _Call, state: str) -> None:
        environment = self._environment(call.environment)
        task = environment.tasks.get(call.task)
        if task is None:
            task = environment.tasks[call.task] = _Task()
        for counts in (self._counts, environment.counts, task.counts):
            if call.state:
                counts[call.state] -= 1
            counts[state] += 1
        call.state, call.reason = state, ""
        environment.running.pop(call.name, None)
        environment.blocked.pop(call.name, None)
        if state == "running":
            environment.running[call.name] = call

    # -- what is drawn -------------------------------------------------------------------------------------------------

    def _heading(self, name: str, environment: _Environment) -> Text:
        row = Text.assemble(("  ■ ", "blue"), (name, "bold"), "  ")
        if environment.step:
            detail, done = environment.step
            bar = "" if done is None else "━" * round(done * _BAR) + "╌" * (_BAR - round(done * _BAR)) + " "
            row.append(f"{bar}{_one_line(detail)}", "dim")
        else:
            row.append_text(_counted(environment.counts))
        return row

    def _inside(self, shown: Mapping[str, _Environment], room: int) -> dict[str, list[Text]]:
        """The rows below each environment: first a share of the room for each kind, then what is left of it."""
        kinds = [_failures, self._runs, _summaries, self._waits]
        shares = [room // 4, room // 4, room // 4, room // 8]
        waiting = [[(name, row) for name, each in shown.items() for row in kind(each, room)] for kind in kinds]
        taken: list[list[tuple[str, Text]]] = [[] for _ in kinds]
        for limits in (shares, [room] * len(kinds)):
            for kind, limit in enumerate(limits):
                many = min(limit - len(taken[kind]), room - sum(map(len, taken)))
                taken[kind] += waiting[kind][: max(many, 0)]
                del waiting[kind][: max(many, 0)]
        found: dict[str, list[Text]] = {name: [] for name in shown}
        for name, row in itertools.chain(*taken):
            found[name].append(row)
        return found

    def _runs(self, environment: _Environment, most: int) -> Iterator[Text]:
        calls = list(itertools.islice(environment.running.values(), _LOOKED_AT))
        calls.sort(key=lambda call: call.inner > 0)
        for call in calls[: max(most, 0)]:
            row = Text(f"    ▶ {call.name} {_short(call.task)}  {_duration(self._clock() - call.since)}")
            if call.used_bytes:
                row.append(f"  {_memory(call.used_bytes, call.limit_bytes)}", "dim")
            if call.attempt > 1:
                row.append(f"  attempt {call.attempt}", "yellow")
            if call.gpus:
                row.append(f"  on {', '.join(gpu[:8] for gpu in call.gpus)}", "magenta")
            if call.inner:
                row.append(f"  waits for {call.inner} call{'s' if call.inner > 1 else ''}", "dim")
            yield row

    def _waits(self, environment: _Environment, most: int) -> Iterator[Text]:
        for call in itertools.islice(environment.blocked.values(), max(most, 0)):
            waited = _duration(self._clock() - call.since)
            yield Text(f"    · {call.name} {_short(call.task)}  {waited}  waits: {_one_line(call.reason)}", "dim")


def _failures(environment: _Environment, most: int) -> Iterator[Text]:
    for call, task, message in itertools.islice(reversed(environment.failed), max(most, 0)):
        yield Text(f"    ✗ {call} {_short(task)}  {message}", "red")


def _summaries(environment: _Environment, most: int) -> Iterator[Text]:
    """A row for each task of an environment that has more than one call, where there is more than one such task."""
    several = {name: task for name, task in environment.tasks.items() if sum(task.counts.values()) > 1}
    for name, task in itertools.islice(several.items(), max(most, 0)):
        row = Text.assemble(f"    {_short(name)}: ", _counted(task.counts))
        if task.peak_bytes:
            row.append(f", at most {task.peak_bytes / 2**20:.0f} MiB each", "dim")
        yield row


def _counted(counts: Mapping[str, int]) -> Text:
    told = [(state, counts[state]) for state in _STYLES if counts.get(state)]
    return Text(", ").join(Text(f"{many} {state}", _STYLES[state]) for state, many in told)


def _short(task: str) -> str:
    return task.partition(".")[2] or task


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text.partition("\n")[0])


def _memory(used: int, limit: int | None) -> str:
    unit, size = ("GiB", 2**30) if max(used, limit or 0) >= 2**30 else ("MiB", 2**20)
    of = f" of {limit / size:.3g}" if limit else ""
    return f"{used / size:.1f}{of} {unit}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"
