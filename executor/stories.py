"""Failures as plain data: what a caller, the record and the console are told of a call that did not succeed.

    {"code", "message", "why", "hint", "task", "environment", "call", "traceback", "cause": another story or None}

code is the class name of what the task raised, or the outcome of its attempt. A story may come out of a container, so it
is read before it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from executor.errors import RunLocalError

Story = dict[str, Any]

_TEXTS = ("code", "message", "why", "hint", "task", "environment", "call", "traceback")
_DEEPEST = 100

_OUTCOMES = {
    "exit": ("the task's process ended before the task returned", "look at its log; `os._exit` or a crash can do this"),
    "signal": ("the task was killed by a signal", "look at its log; a crash in compiled code can do this"),
    "oom": ("the task used more memory than it may", "ask for more: `Resources(memory=…)`"),
    "timeout": ("the task ran longer than its `timeout=`", "give it more time, or less to do"),
    "cancelled": ("the call was stopped", ""),
    "lost": ("the task's container was lost", "was it removed by hand, or did the engine stop?"),
    "rejected": ("the call could not be started", ""),
}


def outcome_story(
    outcome: str, *, task: str, environment: str, call: str, reason: str = "", evidence: Mapping[str, Any] | None = None
) -> Story:
    """The story of a failure that no exception of the task tells. `reason` replaces the usual message."""
    message, hint = _OUTCOMES.get(outcome, (outcome, ""))
    facts = evidence or {}
    details = [f"({name} {facts[name]})" for name in ("exit", "signal") if facts.get(name) is not None]
    return _story(
        code=outcome,
        message=reason or " ".join([message, *details]),
        hint=hint,
        task=task,
        environment=environment,
        call=call,
    )


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
