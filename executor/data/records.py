"""The record of a run: a folder with an append-only journal of facts, one log per call, and the user's outputs.

    runs/<id>/journal.jsonl    one fact a line: {"fact": "CallEnded", "at": seconds since the epoch, …}
    runs/<id>/logs/<call>.log  what the task wrote, byte for byte, stdout and stderr as they came (see `log_name`)
    runs/<id>/reports/         what tasks logged for people (see `reports`)
    runs/<id>/outputs/         files of the result

The journal is the truth; everything shown of a run is read from it, by `read_run`.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from executor.data import leases
from executor.data.reports import Reports, call_name
from executor.data.store import full_disk
from executor.errors import UsageError
from executor.events import JOURNAL, AttemptStarted, Fact, LogWritten, MemoryMeasured, ReportWritten
from executor.scheduling.ranks import Recorded
from executor.version import VERSION

#: Of past runs, how many are looked at, how many are enough, and how large a journal is read, for the times of calls.
_NEWEST, _ENOUGH, _MOST_BYTES = 20, 5, 8 * 2**20
_RUN_ID = re.compile(r"^[0-9]{8}-[0-9]{6}-[0-9a-f]{4}$")


class Record:
    """Writes the record of one run; a listener like any other."""

    def __init__(self, home: Path, run: str, clock: Callable[[], float] = time.time) -> None:
        self.folder = home / "runs" / run
        self._clock = clock
        self._reports = Reports(self.folder)
        self._attempts: dict[str, int] = {}  # of calls that are retried
        self._now = 0.0  # never earlier than before, though a clock may be set back
        with full_disk("the record of the run cannot be written"):
            (self.folder / "logs").mkdir(parents=True)
            self._journal = (self.folder / "journal.jsonl").open("a", encoding="utf-8")

    def __call__(self, fact: Fact) -> None:
        """Append one fact."""
        with full_disk("the record of the run cannot be written"):
            if isinstance(fact, LogWritten):
                attempt = self._attempts.get(fact.call, 1)
                with (self.folder / "logs" / log_name(fact.call, attempt)).open("ab") as log:
                    log.write(fact.data)
                return
            if isinstance(fact, ReportWritten):
                attempt = self._attempts.get(fact.call, 1)
                self._reports.write(fact.call, attempt, fact.tab, fact.html, replace=fact.replace)
                return
            if isinstance(fact, MemoryMeasured):
                return  # of use only while it goes on
            if isinstance(fact, AttemptStarted) and fact.attempt > 1:
                self._attempts[fact.call] = fact.attempt
            self._now = max(self._now, round(self._clock(), 3))
            line = {"fact": type(fact).__name__, "at": self._now}
            line.update((each.name, getattr(fact, each.name)) for each in fields(fact))
            self._journal.write(json.dumps(line, separators=(",", ":"), default=_plain) + "\n")
            self._journal.flush()

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def _plain(part: Any) -> Any:
    """A part of a fact that JSON does not know."""
    return dict(part) if isinstance(part, Mapping) else asdict(part)


@dataclass(kw_only=True)
class AttemptView:
    """One attempt of a call as its record tells it. Times are seconds since the epoch; None is what did not happen.

    started:   when a slot took it; seconds: from then on, or from when it asked for a slot, to its end
    outcome:   how it ended, or empty
    slot:      the number of the slot in the run, or 0 where the record does not tell
    gpus:      the UUIDs of its devices; memory_bytes: what it could use at most, where that was limited
    """

    number: int
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    outcome: str = ""
    container: str | None = None
    slot: int = 0
    gpus: tuple[str, ...] = ()
    memory_bytes: int | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class CallView:
    """One call as its record tells it.

    status: waiting, running, succeeded, cached, failed or cancelled
    key:    of its environment; call_key is that of the call (see `keys`), once its inputs are stored
    origin: where the value of a cached call was computed: the `run` and the `call`
    submitted, ended: seconds since the epoch; shape: what was asked for (see `manifest.Shape`)
    retries, env_vars, timeout_s, cache: what it was called with
    parts:  what its key was made of (see `keys.CallKey.told`)
    waiting:   what it waited for last, in words, or empty
    history:   its attempts; arguments: their previews, by name, where they were recorded
    """

    id: str
    parent: str | None
    task: str
    environment: str
    key: str
    python: str
    status: str = "waiting"
    seconds: float = 0.0
    attempts: int = 0
    container: str | None = None
    value: dict[str, Any] | None = None
    preview: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    raised: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    call_key: str = ""
    origin: dict[str, str] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    submitted: float = 0.0
    ended: float | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    env_vars: dict[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    cache: str = "disable"
    parts: dict[str, Any] = field(default_factory=dict)
    waiting: str = ""
    arguments: dict[str, Any] | None = None
    history: list[AttemptView] = field(default_factory=list)

    @property
    def started(self) -> float | None:
        """When the first of its attempts began."""
        return next((each.started for each in self.history if each.started is not None), None)

    @property
    def waited(self) -> float | None:
        """Seconds from the call to the start of its first attempt."""
        return None if self.started is None else max(0.0, self.started - self.submitted)

    def attempt(self, number: int) -> AttemptView:
        """The attempt with this number; a new one where the record has not told of it yet."""
        for each in reversed(self.history):
            if each.number == number:
                return each
        self.history.append(AttemptView(number=number))
        return self.history[-1]


@dataclass(kw_only=True)
class RunView:
    """One run as its record tells it.

    status:  running, interrupted, succeeded, failed or cancelled
    target:  what the workflow is found by again, from the project's root
    resumes: the run that this one goes on with, or empty
    replays: the run and the call that its root call makes once more, or empty
    error:   why it could not begin, as what, why and hint
    isolation: which rung the process runtime had, in words
    stopped_by: who wanted it to stop, such as a signal, by its name
    told:    the time of the last fact, in seconds since the epoch
    host, snapshot, manifest, fresh: see `events.RunStarted`; empty in records of earlier versions
    code:    digest → parts of the code that calls of it reach (see `events.CodeReached`)
    damaged: how many lines of its journal say nothing that can be understood, besides a torn tail
    """

    id: str
    folder: Path
    workflow: str = ""
    runtime: str = ""
    isolation: str = ""
    stopped_by: str = ""
    root: str = ""
    target: str = ""
    resumes: str = ""
    replays: str = ""
    status: str = "running"
    started: float = 0.0
    seconds: float = 0.0
    error: dict[str, str] | None = None
    told: float = 0.0
    host: dict[str, Any] = field(default_factory=dict)
    snapshot: str = ""
    manifest: str = ""
    fresh: bool = False
    code: dict[str, dict[str, str]] = field(default_factory=dict)
    damaged: int = 0
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: dict[str, CallView] = field(default_factory=dict)

    @property
    def root_call(self) -> CallView | None:
        """The call that the user made."""
        return next((call for call in self.calls.values() if call.parent is None), None)

    @property
    def outputs(self) -> Path:
        """Where the files of the result are."""
        return self.folder / "outputs"

    def log(self, call: str, attempt: int = 1) -> Path:
        """Where that is, if anything, which an attempt of a call wrote."""
        return self.folder / "logs" / log_name(call, attempt)


def log_name(call: str, attempt: int = 1) -> str:
    """The name of a log: `<call>.log`, for a later attempt `<call>@<attempt>.log`."""
    return f"{call_name(call)}@{attempt}.log" if attempt > 1 else f"{call_name(call)}.log"


def newest_runs(home: Path, *, before: str, also: Iterable[str] = ()) -> Iterator[RunView]:
    """The newest of the runs that began before one, and others, the newest first; very large journals are passed over."""
    newest = [each for each in run_ids(home) if each < before][-_NEWEST:]
    for run in sorted({*newest, *also}, reverse=True):
        journal = home / "runs" / run / "journal.jsonl"
        if journal.exists() and journal.stat().st_size <= _MOST_BYTES:
            with contextlib.suppress(UsageError):  # a later version wrote it
                yield read_folder(journal.parent)


def past_times(home: Path, workflow: str) -> list[list[Recorded]]:
    """When the calls of the newest runs of a workflow ran, those that succeeded; see `scheduling.ranks`."""
    found: list[list[Recorded]] = []
    for run in reversed(run_ids(home)[-_NEWEST:]):
        journal = home / "runs" / run / "journal.jsonl"
        if journal.exists() and journal.stat().st_size <= _MOST_BYTES and len(found) < _ENOUGH:
            lines = _lines(journal)
            began = next(lines, {})
            is_ours = began.get("workflow") == workflow and began.get("journal", 0) <= JOURNAL
            if is_ours and (times := _times(lines)):
                found.append(times)
    return found


def _times(lines: Iterator[dict[str, Any]]) -> list[Recorded]:
    tasks: dict[str, str] = {}
    started: dict[str, float] = {}
    found: list[Recorded] = []
    for line in lines:
        with contextlib.suppress(KeyError, TypeError):  # it is damaged
            if line["fact"] == "CallSubmitted":
                tasks[line["call"]] = line["task"]
            elif line["fact"] == "AttemptStarted":
                started[line["call"]] = line["at"]
            elif line["fact"] == "CallEnded" and line["status"] == "succeeded":
                found.append(Recorded(tasks[line["call"]], started[line["call"]], line["at"]))
    return found


def read_run(home: Path, run: str) -> RunView:
    """The run with this id, or whose id starts or ends like this, or the `last` one; raises `UsageError`."""
    return read_folder(find_run(home, run))


def find_run(home: Path, run: str) -> Path:
    """The folder of a run that is named as for `read_run`."""
    names = run_ids(home)
    if run == "last" and names:
        return home / "runs" / names[-1]
    found = [name for name in names if name == run] or [n for n in names if n.startswith(run) or n.endswith(run)]
    if len(found) != 1:
        raise UsageError(
            f"there is no run `{run}`" if not found else f"`{run}` is the name of several runs: {', '.join(found)}",
            hint="`run-local runs` lists them; `last` is the newest",
        )
    return home / "runs" / found[0]


def run_ids(home: Path) -> list[str]:
    """The ids of all runs, oldest first."""
    folder = home / "runs"
    return sorted(path.name for path in folder.iterdir() if _RUN_ID.match(path.name)) if folder.exists() else []


def read_folder(folder: Path) -> RunView:
    """The run whose record lies in a folder; raises `UsageError` where a later version of run-local wrote it."""
    view = RunView(id=folder.name, folder=folder)
    for line in _lines(folder / "journal.jsonl"):
        try:
            if line.get("journal", 0) > JOURNAL:
                raise _newer(folder.name, line)
            fold = _FOLDS.get(line.pop("fact"))
            view.told = line["at"]
            if fold:
                fold(view, line)
        except (KeyError, TypeError, AttributeError):
            view.damaged += 1
    if view.status == "running" and not leases.lease_is_held(folder / leases.NAME):
        view.status = "interrupted"
    return view


def _newer(run: str, line: Mapping[str, Any]) -> UsageError:
    version = dict(line.get("host") or {}).get("version", "a later version")
    return UsageError(
        f"the record of run {run} cannot be read",
        why=f"run-local {version} wrote it, in format {line['journal']}; this one is {VERSION}, and reads up to {JOURNAL}",
        hint="use the version that wrote it, or a later one; nothing of the run is lost",
    )


def _lines(journal: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; an empty one for each that is damaged, but none for the torn tail of one that was killed."""
    if not journal.exists():
        return
    damaged = 0
    with journal.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                told = json.loads(line)
            except ValueError:
                told = None
            if not isinstance(told, dict):
                damaged += 1
                continue
            yield from ({} for _ in range(damaged))
            damaged = 0
            yield told
    yield from ({} for _ in range(damaged - 1))


def _run_started(view: RunView, fact: dict[str, Any]) -> None:
    view.workflow, view.runtime, view.root, view.started = fact["workflow"], fact["runtime"], fact["root"], fact["at"]
    view.target, view.resumes = fact.get("target", ""), fact.get("resumes", "")
    view.isolation, view.replays = fact.get("isolation", ""), fact.get("replays", "")
    view.host, view.snapshot = fact.get("host", {}), fact.get("snapshot", "")
    view.manifest, view.fresh = fact.get("manifest", ""), fact.get("fresh", False)


def _environment_ready(view: RunView, fact: dict[str, Any]) -> None:
    view.environments[fact["environment"]] = fact


def _call_submitted(view: RunView, fact: dict[str, Any]) -> None:
    made = view.environments.get(fact["environment"], {})
    view.calls[fact["call"]] = CallView(
        id=fact["call"],
        parent=fact["parent"],
        task=fact["task"],
        environment=fact["environment"],
        key=made.get("key", ""),
        python=made.get("python", ""),
        submitted=fact["at"],
        shape=fact.get("shape", {}),
        retries=fact.get("retries", 0),
        env_vars=fact.get("env_vars", {}),
        timeout_s=fact.get("timeout_s"),
        cache=fact.get("cache", "disable"),
        arguments=fact.get("arguments"),
    )


def _code_reached(view: RunView, fact: dict[str, Any]) -> None:
    view.code[fact["digest"]] = fact["parts"]


def _inputs_committed(view: RunView, fact: dict[str, Any]) -> None:
    call = view.calls[fact["call"]]
    call.inputs, call.call_key, call.parts = fact["inputs"], fact["key"], fact.get("parts", {})


def _call_waiting(view: RunView, fact: dict[str, Any]) -> None:
    view.calls[fact["call"]].waiting = fact["reason"]


def _attempt_started(view: RunView, fact: dict[str, Any]) -> None:
    call = view.calls[fact["call"]]
    call.status, call.attempts, call.container = "running", fact["attempt"], fact["container"]
    attempt = call.attempt(fact["attempt"])
    attempt.started, attempt.container, attempt.slot = fact["at"], fact["container"], fact.get("slot", 0)
    attempt.gpus, attempt.memory_bytes = tuple(fact.get("gpus", ())), fact.get("memory_bytes")


def _attempt_ended(view: RunView, fact: dict[str, Any]) -> None:
    call = view.calls[fact["call"]]
    call.seconds = round(call.seconds + fact["seconds"], 3)
    call.evidence = {"outcome": fact["outcome"], **fact["evidence"]}
    attempt = call.attempt(fact["attempt"])
    attempt.ended, attempt.seconds = fact["at"], fact["seconds"]
    attempt.outcome, attempt.evidence = fact["outcome"], fact["evidence"]


def _call_ended(view: RunView, fact: dict[str, Any]) -> None:
    call = view.calls[fact["call"]]
    call.status, call.value, call.preview, call.error = fact["status"], fact["value"], fact["preview"], fact["error"]
    call.raised, call.origin, call.ended = fact.get("raised"), fact.get("origin"), fact["at"]


def _run_cancelled(view: RunView, fact: dict[str, Any]) -> None:
    view.stopped_by = fact["reason"]


def _run_ended(view: RunView, fact: dict[str, Any]) -> None:
    view.status, view.seconds, view.error = fact["status"], fact["seconds"], fact.get("error")


_FOLDS: dict[str, Callable[[RunView, dict[str, Any]], None]] = {
    "RunStarted": _run_started,
    "EnvironmentReady": _environment_ready,
    "CallSubmitted": _call_submitted,
    "CodeReached": _code_reached,
    "InputsCommitted": _inputs_committed,
    "CallWaiting": _call_waiting,
    "AttemptStarted": _attempt_started,
    "AttemptEnded": _attempt_ended,
    "CallEnded": _call_ended,
    "RunCancelled": _run_cancelled,
    "RunEnded": _run_ended,
}
