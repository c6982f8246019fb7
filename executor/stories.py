"""Failures as plain data: what a caller, the record and the console are told of a call that did not succeed.

    {"code", "message", "why", "hint", "task", "environment", "call", "traceback", "log", "cause": another story or None}

code is the class name of what the task raised, or the outcome of its attempt; log is the last of what the attempt printed,
where no traceback tells more. A story may come out of a container, so it is read before it is believed.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from typing import Any

from executor.errors import RunLocalError

Story = dict[str, Any]
Evidence = Mapping[str, Any]

_TEXTS = ("code", "message", "why", "hint", "task", "environment", "call", "traceback", "log")
_DEEPEST = 100


def outcome_story(
    outcome: str, *, task: str, environment: str, call: str, reason: str = "", evidence: Evidence | None = None
) -> Story:
    """The story of a failure that no exception of the task tells. `reason` replaces the usual message."""
    facts = evidence or {}
    message, why, hint = _TOLD[outcome](facts) if outcome in _TOLD else (outcome, "", "")
    whys = [why, *(text for text in warnings(facts) if outcome != "oom")]
    return _story(
        code=outcome,
        message=reason or message,
        why="\n".join(filter(None, whys)),
        hint=hint,
        task=task,
        environment=environment,
        call=call,
        log=str(facts.get("log", "")),
    )


def warnings(evidence: Evidence) -> list[str]:
    """What an attempt met that need not have been its end, one line each."""
    told = []
    if evidence.get("oom_kills") and not evidence.get("oom_task"):
        told.append(f"{_killed_children(evidence)} for want of memory{_within(evidence)}")
    if evidence.get("pids_refused"):
        limit = evidence.get("pids_limit")
        at_most = f"the limit of {limit} processes and threads" if limit else "the limit of processes"
        told.append(f"{at_most} was met, and {evidence['pids_refused']} could not be started")
    return told


def signal_name(number: int) -> str:
    """The name of a signal; its number, where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def amount_text(amount: float) -> str:
    """An amount of memory as people and `Resources` write it, in whole Mi or Gi, rounded up."""
    whole = max(1, math.ceil(amount / 2**20))
    return f"{whole // 1024}Gi" if whole % 1024 == 0 else f"{whole}Mi"


def _killed_children(evidence: Evidence) -> str:
    count = evidence["oom_kills"] - bool(evidence.get("oom_task"))
    return "a process that the task had started was killed" if count == 1 else f"{count} processes were killed"


def _within(evidence: Evidence) -> str:
    limit = evidence.get("memory_limit_bytes")
    return f" (the limit is {amount_text(limit)})" if limit else ""


def _tell_exit(evidence: Evidence) -> tuple[str, str, str]:
    code = evidence.get("exit")
    shown = "" if code is None else f" (exit {code})"
    hint = "look at its log; `os._exit` or a crash can do this"
    return f"the task's process ended before the task returned{shown}", "", hint


def _tell_signal(evidence: Evidence) -> tuple[str, str, str]:
    number = evidence.get("signal")
    if number is None:
        return "the task was killed by a signal", "", "look at its log"
    message = f"the task was killed by {signal_name(number)} (signal {number})"
    if number == signal.SIGBUS:
        size = evidence.get("shm_bytes")
        holds = f"; it holds {amount_text(size)}" if size else ""
        more = amount_text(2 * size) if size else "…"
        return message, f"/dev/shm is full?{holds}", f'give it more: `Resources(shm="{more}")`'  # noqa: S108
    if number == signal.SIGKILL:
        why = "run-local did not send it, and the kernel counts no process that it killed for want of memory"
        return message, why, "did the task do it itself, or somebody on this machine?"
    return message, "", "look at its log; a crash in compiled code can do this"


def _tell_oom(evidence: Evidence) -> tuple[str, str, str]:
    limit = evidence.get("memory_limit_bytes")
    more = f"than the {amount_text(limit)} that it may" if limit else "than this machine has"
    why = []
    if evidence.get("oom_task", True):
        why.append("the kernel killed the task itself")
    else:
        ended = f", and the task then ended with {evidence['then']}" if evidence.get("then") else ""
        why.append(f"{_killed_children(evidence)} by the kernel{ended}")
    peak = evidence.get("group_peak_bytes") or evidence.get("peak_bytes")
    if peak:
        why.append(f"the most that was seen of it: {amount_text(peak)}")
    hint = "ask for less at once, or for a machine with more"
    if limit:
        grown = f'`Resources(memory=("{amount_text(limit)}", "{amount_text(4 * limit)}"))`'
        more_memory = f'`Resources(memory="{amount_text(2 * limit)}")`'
        hint = f"ask for more: {more_memory}, or {grown}, which begins with less and grows when that is too little"
    return f"the task used more memory {more}", "\n".join(why), hint


def _tell_timeout(evidence: Evidence) -> tuple[str, str, str]:
    limit = evidence.get("timeout_s")
    shown = f" of {limit:g} s" if limit is not None else ""
    why = "its agent did not stop it, so the host has" if evidence.get("by") == "host" else ""
    return f"the task ran longer than its `timeout=`{shown}", why, "give it more time, or less to do"


def _tell_lost_agent(evidence: Evidence) -> tuple[str, str, str]:
    hint = "it is replaced once by itself; `retries=` allows for more"
    return "what the task ran in was lost", str(evidence.get("why", "")), hint


def _tell_lost_engine(evidence: Evidence) -> tuple[str, str, str]:
    hint = "start it again (`systemctl start docker`), or use `--runtime process`"
    return "the container engine was lost", str(evidence.get("why", "")), hint


_TOLD: dict[str, Callable[[Evidence], tuple[str, str, str]]] = {
    "exit": _tell_exit,
    "signal": _tell_signal,
    "oom": _tell_oom,
    "timeout": _tell_timeout,
    "cancelled": lambda _: ("the call was stopped", "", ""),
    "lost_agent": _tell_lost_agent,
    "lost_engine": _tell_lost_engine,
    "rejected": lambda _: ("the call could not be started", "", ""),
}


def error_story(exc: RunLocalError, *, task: str, environment: str = "", call: str = "", code: str = "") -> Story:
    """The story of one of our own errors."""
    return _story(
        code=code or type(exc).__name__,
        message=exc.what,
        why=exc.why,
        hint=exc.hint,
        task=task,
        environment=environment,
        call=call,
    )


def read_story(told: Any, depth: int = 0) -> Story:
    """A story that somebody else told: its texts as texts, its causes as stories, and nothing more."""
    if not isinstance(told, Mapping):
        return _story(code="?", message=str(told)[:500])
    cause = told.get("cause")
    read = _story(**{name: str(told.get(name, "")) for name in _TEXTS})
    read["cause"] = read_story(cause, depth + 1) if isinstance(cause, Mapping) and depth < _DEEPEST else None
    return read


def _story(**texts: str) -> Story:
    return {**dict.fromkeys(_TEXTS, ""), **texts, "cause": None}
