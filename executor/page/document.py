"""What the page of a run says, as plain data: what is read first as it stands, what is looked up as compact JSON.

Everything in it is bounded: a run of ten thousand calls still opens at once, and what was left out is said.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.console import story_chain, story_place
from executor.data.records import AttemptView, CallView, RunView
from executor.data.reports import read_report, report_folder
from executor.data.store import Store
from executor.page.previews import Pictures, describe_file, shorten
from executor.page.texts import read_tail, render_bytes
from executor.runs import exported_names

_MOST_OF_A_LOG = 16 * 2**10
_MOST_OF_A_FAILED_LOG = 64 * 2**10
_MOST_LOGS = 6 * 2**20
_MOST_OF_A_VALUE = 2 * 2**10
_MOST_OF_THE_RESULT = 256 * 2**10
_MOST_VALUES = 6 * 2**20
#: Of what tasks log for people: of a tab, and of all that the page shows, in bytes.
_MOST_OF_A_TAB, _MOST_OF_REPORTS = 4 * 2**20, 12 * 2**20
_LAST_LINES = 20
_MOST_LANES = 48
_MOST_TOLD = 20

_FAILED = ("failed", "cancelled", "running", "waiting")
_SIGNS = {"succeeded": "✓", "cached": "≡", "failed": "✗", "cancelled": "⊘", "interrupted": "⚠", "running": "▶"}


@dataclass(frozen=True, kw_only=True)
class Document:
    """shown: what the template puts into the page; data: the calls, for the script; details: what one of them opens."""

    shown: dict[str, Any]
    data: dict[str, Any]
    details: dict[str, Any]


def describe_run(view: RunView, home: Path, *, now: float) -> Document:
    """All that the page says of a run. now: until when that which runs has run, in seconds since the epoch."""
    end = now if view.status == "running" else max([view.told, view.started + view.seconds])
    calls = list(view.calls.values())
    index = {call.id: number for number, call in enumerate(calls)}
    lanes, bars = _timeline(calls, index, view.started, end)
    shapes = list({json.dumps(_asked(call)): _asked(call) for call in calls}.values())
    shown = {
        "view": view,
        "host": {name: view.host.get(name, "") for name in ("name", "kernel", "engine", "python", "version")},
        "machine": _machine(view.host),
        "sign": _SIGNS.get(view.status, "·"),
        "seconds": view.seconds if view.status not in ("running", "interrupted") else max(0.0, end - view.started),
        "now": now,
        "counts": _counts(view),
        "totals": _totals(calls),
        "failure": _failure(view, index),
        "tasks": _tasks(calls),
        "environments": [_environment(made, calls) for made in view.environments.values()],
    }
    tasks = list(dict.fromkeys(call.task for call in calls))
    numbers = {task: number for number, task in enumerate(tasks)}
    data = {
        "run": view.id,
        "span": round(max(end - view.started, 0.001), 3),
        "tasks": tasks,
        "calls": [_row(view, call, index, numbers, shapes) for call in calls],
        "shapes": shapes,
        "environments": {made: [each["python"], each["key"]] for made, each in view.environments.items()},
        "lanes": lanes,
        "bars": bars,
    }
    details = _Details(view, home, end)
    told = details.describe(calls)
    return Document(shown={**shown, "has_reports": details.has_reports}, data=data, details=told)


def _row(
    view: RunView, call: CallView, index: Mapping[str, int], tasks: Mapping[str, int], shapes: list[dict[str, Any]]
) -> list[Any]:
    """One call for the script, in the order that it knows."""
    began, started, ended = view.started, call.started, call.ended
    return [
        call.id,
        index.get(call.parent or "", -1),
        tasks[call.task],
        _status(view, call),
        round(call.submitted - began, 3),
        None if started is None else round(started - began, 3),
        None if ended is None else round(ended - began, 3),
        call.seconds if call.history else None,
        call.evidence.get("cpu_s"),
        call.evidence.get("peak_bytes"),
        _limit(call),
        call.attempts,
        shapes.index(_asked(call)),
    ]


def _status(view: RunView, call: CallView) -> str:
    """How far a call has come; nothing runs in a run whose process was killed."""
    return "interrupted" if view.status == "interrupted" and call.status in ("running", "waiting") else call.status


def _asked(call: CallView) -> dict[str, Any]:
    """What a call asked for, without what it did not."""
    return {name: value for name, value in call.shape.items() if value}


def _limit(call: CallView) -> int | None:
    """What an attempt of a call could use of memory, where that was limited."""
    last: int | None = call.history[-1].memory_bytes if call.history else None
    asked: int | None = call.shape.get("memory_limit_bytes")
    return last or asked


def _machine(host: Mapping[str, Any]) -> str:
    """How large the machine is; empty where the record does not say."""
    if not host.get("cores"):
        return ""
    return f"{host['cores']:g} cores, {render_bytes(host['memory_bytes'])}"


def _counts(view: RunView) -> list[tuple[str, int]]:
    found = collections.Counter(_status(view, call) for call in view.calls.values())
    order = ("failed", "cancelled", "interrupted", "running", "waiting", "succeeded", "cached")
    return [(status, found[status]) for status in order if found[status]]


def _totals(calls: list[CallView]) -> dict[str, Any]:
    attempts = [each for call in calls for each in call.history]
    spent = [float(each.evidence["cpu_s"]) for each in attempts if "cpu_s" in each.evidence]
    peaks = [(int(call.evidence["peak_bytes"]), call.id) for call in calls if "peak_bytes" in call.evidence]
    waited = [call.waited for call in calls if call.waited is not None]
    return {
        "cpu_s": sum(spent) if spent else None,
        "peak": max(peaks) if peaks else None,
        "waited": max(waited) if waited else None,
        "retried": sum(len(call.history) > 1 for call in calls),
    }


def _failure(view: RunView, index: Mapping[str, int]) -> dict[str, Any]:
    """What went wrong: the innermost story `first`, who called it, what it printed last, and the calls that failed besides.

    A call may have failed although its run succeeded: its caller made something else of it.
    """
    root, chain = view.root_call, list[Mapping[str, Any]]()
    if root and root.error:
        chain = story_chain(root.error)
    call = view.calls.get(str(chain[0].get("call"))) if chain else None
    links = [str(each.get("call")) for each in chain]
    others = [each for each in view.calls.values() if each.status == "failed" and each.error and each.id not in links]
    return {
        "first": chain[0] if chain else None,
        "callers": [(each, story_place(each).removeprefix(", ")) for each in chain[1:]],
        "number": index[call.id] if call else None,
        "log": _last_lines(view, call) if call else "",
        "others": [(index[each.id], each) for each in others[:_MOST_TOLD]],
        "other": len(others),
    }


def _last_lines(view: RunView, call: CallView) -> str:
    text, _ = read_tail(view.log(call.id, max(1, call.attempts)), _MOST_OF_A_LOG)
    return "\n".join(text.split("\n")[-_LAST_LINES:])


def _tasks(calls: list[CallView]) -> list[dict[str, Any]]:
    """What each task used of what it had, over all of its calls; who used most time first."""
    by_task: dict[str, list[CallView]] = {}
    for call in calls:
        by_task.setdefault(call.task, []).append(call)
    rows = [_usage(task, theirs) for task, theirs in by_task.items()]
    return sorted(rows, key=lambda row: -row["seconds"])


def _usage(task: str, calls: list[CallView]) -> dict[str, Any]:
    attempts = [each for call in calls for each in call.history if each.ended is not None]
    measured = [each for each in attempts if "cpu_s" in each.evidence and each.started is not None]
    ran = sum(_ran(each) for each in measured)
    peaks = [int(each.evidence["peak_bytes"]) for each in attempts if "peak_bytes" in each.evidence]
    limits = [limit for call in calls if (limit := _limit(call))]
    cpu_s = sum(float(each.evidence["cpu_s"]) for each in measured)
    return {
        "name": task,
        "calls": len(calls),
        "attempts": sum(len(call.history) for call in calls),
        "seconds": sum(call.seconds for call in calls),
        "cpu_s": cpu_s if measured else None,
        "cores": cpu_s / ran if ran > 0 else None,
        "cpus": max((float(call.shape["cpus"]) for call in calls if call.shape), default=None),
        "peak": max(peaks, default=None),
        "limit": max(limits, default=None),
        "gpus": max((int(call.shape["gpus"]) for call in calls if call.shape), default=0),
        "devices": len({gpu for each in attempts for gpu in each.gpus}),
    }


def _ran(attempt: AttemptView) -> float:
    """Seconds from the moment that a slot took an attempt to its end."""
    if attempt.started is None or attempt.ended is None:
        return 0.0
    return max(attempt.ended - attempt.started, 0.001)


def _environment(made: Mapping[str, Any], calls: list[CallView]) -> dict[str, Any]:
    return {
        "name": made["environment"],
        "key": made["key"],
        "python": made["python"],
        "seconds": made["seconds"],
        "image": made.get("image"),
        "lock": made.get("lock", ""),
        "packages": made.get("packages", []),
        "calls": sum(call.environment == made["environment"] for call in calls),
    }


def _last_report(run: Path, call: str) -> int:
    """The number of the last attempt of a call that has a report, or 0."""
    folder = report_folder(run, call, 1).parent
    return max((int(each.name) for each in folder.glob("*") if each.name.isdigit()), default=0)


# -- the timeline ------------------------------------------------------------------------------------------------------


def _timeline(
    calls: list[CallView], index: Mapping[str, int], began: float, end: float
) -> tuple[list[list[str]], list[list[Any]]]:
    """Lanes, each with a name and what it is; and a bar for each attempt: lane, call, attempt, from, to and outcome.

    A lane is a slot, as long as there are not too many of them: then it is as many as ran at once. A GPU has one, too.
    """
    attempts = [(call, each) for call in calls for each in call.history if each.started is not None]
    attempts.sort(key=lambda pair: (pair[1].started, index[pair[0].id]))
    slots = dict.fromkeys(_slot_name(call, each) for call, each in attempts)
    packed = len(slots) > _MOST_LANES or not all(each.slot for _, each in attempts)
    places = list(_packed(attempts, end) if packed else (_slot_name(*pair) for pair in attempts))
    gpus = sorted({gpu for _, each in attempts for gpu in each.gpus})
    names = [*sorted(dict.fromkeys(places)), *(("GPU", 0, gpu) for gpu in gpus)]
    lanes = {name: number for number, name in enumerate(names)}
    bars = []
    for (call, each), place in zip(attempts, places, strict=True):
        until = each.ended if each.ended is not None else end
        times = [round((each.started or 0) - began, 3), round(until - began, 3)]
        places_of = (place, *(("GPU", 0, gpu) for gpu in each.gpus))
        bars += [[lanes[lane], index[call.id], each.number, *times, each.outcome] for lane in places_of]
    kinds = {True: "at once", False: "slot"}
    shown = [["GPU", name[2]] if name[0] == "GPU" else [name[0], f"{kinds[packed]} {name[1]}"] for name in names]
    return shown, bars


def _slot_name(call: CallView, attempt: AttemptView) -> tuple[str, int, str]:
    return (call.environment, attempt.slot, "")


def _packed(attempts: list[tuple[CallView, AttemptView]], end: float) -> Iterator[tuple[str, int, str]]:
    """A lane for each attempt in which no other one of its environment runs meanwhile."""
    free: dict[str, list[float]] = {}  # environment → until when each of its lanes is taken
    for call, each in attempts:
        taken = free.setdefault(call.environment, [])
        started = each.started or 0
        lane = next((number for number, until in enumerate(taken) if until <= started), len(taken))
        until = end if each.ended is None else each.ended
        taken[lane : lane + 1] = [until]
        yield (call.environment, lane + 1, "")


# -- what is opened ----------------------------------------------------------------------------------------------------


class _Details:
    """What is said of each call once somebody asks for it, as far as there is room: first of those that failed."""

    def __init__(self, view: RunView, home: Path, end: float) -> None:
        self._view, self._store, self._end = view, Store(home, home / "tmp"), end
        self._pictures = Pictures()
        self._room_for_logs, self._room_for_values = _MOST_LOGS, _MOST_VALUES
        self._room_for_reports = _MOST_OF_REPORTS
        self._home = home
        self.has_reports = False

    def describe(self, calls: list[CallView]) -> dict[str, Any]:
        """The details of every call, in their order, and the pictures."""
        order = sorted(range(len(calls)), key=lambda n: (n != 0, calls[n].status not in _FAILED, n))
        told = {number: self._call(calls[number]) for number in order}
        return {"calls": [told[number] for number in range(len(calls))], "pictures": self._pictures.found}

    def _call(self, call: CallView) -> dict[str, Any]:
        most = _MOST_OF_THE_RESULT if call.parent is None else _MOST_OF_A_VALUE
        made: dict[str, Any] = {
            "attempts": [self._attempt(each) for each in call.history],
            "reports": self._reports(call),
            "logs": self._logs(call),
            "value": self._value(call.preview, most) if call.preview else None,
            "files": self._files(call),
            "error": call.error,
            "origin": call.origin,
            "waiting": call.waiting,
        }
        told = {name: value for name, value in made.items() if value or name == "attempts"}
        if call.arguments is not None:
            told["arguments"] = {name: self._value(each, most) for name, each in call.arguments.items()}
        return told

    def _attempt(self, attempt: AttemptView) -> list[Any]:
        began = self._view.started
        return [
            attempt.number,
            None if attempt.started is None else round(attempt.started - began, 3),
            None if attempt.ended is None else round(attempt.ended - began, 3),
            attempt.outcome,
            (attempt.container or "")[:12],
            attempt.slot,
            list(attempt.gpus),
            attempt.memory_bytes,
            attempt.evidence,
        ]

    def _reports(self, call: CallView) -> list[list[Any]]:
        """The tabs of its last attempt that logged any: name, HTML and size; of what is too large there is no HTML.

        A cached call has the report of the call that computed its value, as long as that run is there.
        """
        run, name, attempts = self._view.folder, call.id, call.attempts
        if call.origin:
            run, name = self._home / "runs" / Path(call.origin["run"]).name, call.origin["call"]
            attempts = _last_report(run, name)
        for attempt in range(attempts, 0, -1):
            tabs = []
            for tab in read_report(run, name, attempt, _MOST_OF_A_TAB + 1):
                fits = tab.size <= min(_MOST_OF_A_TAB, self._room_for_reports)
                self._room_for_reports -= tab.size if fits else 0
                tabs.append([tab.name, tab.html if fits else None, tab.size])
            if tabs:
                self.has_reports = True
                return tabs
        return []

    def _logs(self, call: CallView) -> list[list[Any]]:
        """Of each attempt the end of its log, the size of all of it, and whether something is left out."""
        logs = [self._log(call, number) for number in range(1, call.attempts + 1)]
        return logs if any(size for _, size, _ in logs) else []

    def _log(self, call: CallView, attempt: int) -> list[Any]:
        most = min(_MOST_OF_A_FAILED_LOG if call.status in _FAILED else _MOST_OF_A_LOG, self._room_for_logs)
        text, size = read_tail(self._view.log(call.id, attempt), most)
        self._room_for_logs -= len(text)
        return [text, size, size > most]

    def _value(self, preview: Mapping[str, Any], most: int) -> dict[str, Any]:
        made, size = shorten(preview, min(most, max(self._room_for_values, 200)))
        self._room_for_values -= size
        return made

    def _files(self, call: CallView) -> list[dict[str, Any]]:
        """The files of its value, in their order there; those of the result lie in the run's outputs, too."""
        if not call.value:
            return []
        names = exported_names(call.value)
        described = []
        for file, name in zip(call.value.get("files", ()), names, strict=True):
            content = self._store.path(file["sha256"])
            room = name and self._room_for_values > 0
            told = describe_file(file, name, content, self._pictures) if room else {"name": name, "size": file["size"]}
            if call.parent is None and name:
                told["at"] = name
            self._room_for_values -= sum(len(str(told.get(part, ""))) for part in ("text", "table"))
            described.append(told)
        return described
