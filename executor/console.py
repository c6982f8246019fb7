"""Facts as a person at a terminal sees them: live where stderr is a terminal, plain lines elsewhere.

Everything goes to stderr; stdout is for the result. Nothing here decides anything, and what is shown can be read again
from the record.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    CallWaiting,
    EnvironmentReady,
    Fact,
    LogWritten,
    RunCancelled,
    RunEnded,
    RunStarted,
)
from executor.stories import warnings

_LONGEST_LINE = 64 * 2**10
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: Control sequences, those that hold a text, other escapes; control characters but the tab; changes of direction.
_UNSAFE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x07|\x1b\\|\x9c|$)|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)
_QUICK_S = 0.5
_SAID_AT_ONCE = frozenset({"lock", "base", "imports", "import"})


class ConsoleView:
    """Shows a run. A context manager, because a live display must be ended; `verbose` shows the tasks' output, too.

    beside: the view of another run of this process; there is one live display at a time, and lines go above it
    """

    def __init__(self, *, verbose: bool, quiet: bool = False, beside: ConsoleView | None = None) -> None:
        console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._console: Console = beside._console if beside else console
        self._verbose = verbose
        self._tasks: dict[str, str] = {}
        self._running: dict[str, float] = {}
        self._waiting: dict[str, str] = {}  # call → what for, where that is known
        self._steps: dict[str, tuple[str, str, float | None]] = {}
        self._told: dict[str, str] = {}
        self._telling = threading.RLock()
        self._partial: dict[tuple[str, str], bytes] = {}
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=bool(
                sys.stdout and sys.stdout.isatty()
            ),  # what a script prints into a file stays out of it
        )
        self._moves = self._console.is_terminal and not quiet and not beside

    def __enter__(self) -> ConsoleView:
        if self._moves:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._moves:
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print a line above whatever is live."""
        if self._console.is_terminal:
            self._console.print(Text(text, style=style))
        elif not self._console.quiet:  # at a hundredth of the price, where there are a thousand calls
            self._console.file.write(text + "\n")
            self._console.file.flush()

    def progress(self, environment: str, step: str, detail: str, done: float | None = None) -> None:
        """A step of making an environment; see `executor.environments.Progress`."""
        with self._telling:
            if step == "ready":
                self._steps.pop(environment, None)
                self._told.pop(environment, None)
            elif step == "warning":
                self.say(f"  {environment}: {detail}", "yellow")
            elif step == "import" and not self._verbose:
                return
            elif self._moves and step not in _SAID_AT_ONCE:
                self._steps[environment] = (step, detail, done)
            elif done is None or self._told.get(environment) != step:  # of what goes on, only that it begins
                self.say(f"  {environment}: {detail or step}", "dim")
                self._told[environment] = step

    def __call__(self, fact: Fact) -> None:
        """Take note of a fact."""
        match fact:
            case RunStarted():
                isolation = f": {fact.isolation}" if fact.isolation else ""
                self.say(f"run {fact.run} of {fact.workflow} ({fact.runtime}{isolation})", "bold")
            case EnvironmentReady():
                self._environment(fact)
            case CallSubmitted() | CallWaiting():
                self._call_waits(fact)
            case AttemptStarted():
                self._attempt_started(fact)
            case LogWritten():
                self._log(fact)
            case AttemptEnded():
                self._attempt_ended(fact)
            case CallEnded():
                self._call_ended(fact)
            case RunCancelled():
                self.say(f"stopping ({fact.reason}); once more to stop at once", "yellow")
            case RunEnded():
                self._run_ended(fact)

    def _environment(self, fact: EnvironmentReady) -> None:
        if fact.seconds > _QUICK_S or self._verbose:
            self.say(
                f"  {fact.environment}: ready, Python {fact.python}, {fact.seconds:.1f} s ({fact.key[:12]})", "dim"
            )

    def _call_waits(self, fact: CallSubmitted | CallWaiting) -> None:
        if isinstance(fact, CallSubmitted):
            self._tasks[fact.call] = fact.task
            self._waiting[fact.call] = ""
        else:
            self._waiting[fact.call] = fact.reason
            if not self._moves:
                self.say(f"  · {fact.call} {self._tasks[fact.call]} waits: {fact.reason}", "dim")

    def _attempt_started(self, fact: AttemptStarted) -> None:
        self._waiting.pop(fact.call, None)
        self._running[fact.call] = time.monotonic()
        if not self._moves:
            again = f", attempt {fact.attempt}" if fact.attempt > 1 else ""
            self.say(f"  ▶ {fact.call} {self._tasks[fact.call]}{again}", "dim")

    def _attempt_ended(self, fact: AttemptEnded) -> None:
        self._flush(fact.call)
        self._running.pop(fact.call, None)
        mark, style = ("✓", "green") if fact.outcome == "ok" else ("✗", "red")
        note = "" if fact.outcome in ("ok", "raised") else f" ({fact.outcome})"
        self.say(f"  {mark} {fact.call} {self._tasks[fact.call]} {fact.seconds:.1f} s{note}", style)
        for warning in warnings(fact.evidence) if fact.outcome == "ok" else ():
            self.say(f"    {warning}; the task went on", "yellow")

    def _call_ended(self, fact: CallEnded) -> None:
        self._waiting.pop(fact.call, None)
        if fact.status == "cached":
            self.say(f"  ≡ {fact.call} {self._tasks[fact.call]} (cached)", "cyan")

    def _run_ended(self, fact: RunEnded) -> None:
        for call in dict.fromkeys(call for call, _ in list(self._partial)):
            self._flush(call)
        self.say(f"{fact.status} after {fact.seconds:.1f} s", "bold" if fact.status == "succeeded" else "bold red")

    def _log(self, fact: LogWritten) -> None:
        if not self._verbose:
            return
        key = (fact.call, fact.stream)
        *lines, rest = (self._partial.get(key, b"") + fact.data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._partial[key] = rest
        for line in lines:
            self._log_line(fact.call, line)

    def _flush(self, call: str) -> None:
        for key in [key for key in self._partial if key[0] == call]:
            if rest := self._partial.pop(key):
                self._log_line(call, rest)

    def _log_line(self, call: str, line: bytes) -> None:
        colours = self._console.is_terminal
        text = f"  {self._tasks[call].partition('.')[2]} │ {printable(line, colours=colours)}"
        if colours and "\x1b" in text:
            self._console.print(Text.from_ansi(text))
        else:
            self.say(text)

    def _render(self) -> RenderableType:
        if not (self._steps or self._running or self._waiting):
            return Group()
        table = Table.grid(padding=(0, 1))
        for environment, (step, detail, done) in list(self._steps.items()):
            bar = "" if done is None else ProgressBar(total=1.0, completed=done, width=20)
            table.add_row("  …", environment, bar, detail or step)
        now = time.monotonic()
        for call, since in self._running.items():
            table.add_row("  ▶", f"{call} {self._tasks[call]}", f"{now - since:.0f} s")
        for call, reason in self._waiting.items():
            table.add_row("  ·", f"{call} {self._tasks[call]}", f"waits: {reason}" if reason else "waits")
        return table


def printable(line: bytes, *, colours: bool) -> str:
    """A line that a task wrote, as it may be shown: nothing in it does more to a terminal than give a colour.

    What is no UTF-8 becomes `�`, control characters and sequences are left out, and of what was written over itself,
    such as a progress bar, the last is shown. The record has the line as it was.
    """
    text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
    return _UNSAFE.sub(lambda found: found[0] if colours and _COLOUR.fullmatch(found[0]) else "", text)


def story_chain(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The stories in the story of a failed call: the innermost failure first, then who called it."""
    chain = [error]
    while cause := chain[-1].get("cause"):
        chain.append(cause)
    return chain[::-1]


def render_failure(error: Mapping[str, Any]) -> str:
    """The story of a failed call for a person, the innermost failure first, then who called it."""
    first, *callers = story_chain(error)
    lines = [f"task `{first['task']}` failed: {first['code']}: {first['message']}"]
    for label in ("why", "hint"):
        if first.get(label):
            start = f"  {label}: "
            lines.append(start + str(first[label]).replace("\n", "\n" + " " * len(start)))
    if first.get("traceback"):
        lines += ["", first["traceback"].rstrip(), ""]
    elif first.get("log"):
        said = (printable(line, colours=False) for line in first["log"].rstrip("\n").encode().split(b"\n"))
        lines += ["  the last that it printed:", *(f"    │ {line}" for line in said)]
    if first.get("environment") and first.get("call"):
        lines += [f"  in environment `{first['environment']}`, call {first['call']}"]
    for inner, caller in zip([first, *callers], callers, strict=False):
        lines.append(f"  called by `{caller['task']}`, call {caller['call']}{story_place(caller)}")
        if (caller["code"], caller["message"]) != (inner["code"], inner["message"]) and caller["code"] != "TaskError":
            lines.append(f"    which made of it {caller['code']}: {caller['message']}")
    return "\n".join(lines)


def story_place(story: Mapping[str, Any]) -> str:
    """Where a caller stood: the last line of the project's own in its traceback, where files have relative names."""
    frames = [line.strip() for line in story.get("traceback", "").splitlines() if line.strip().startswith("File ")]
    ours = [frame for frame in frames if not frame.startswith('File "/')]
    return f", {(ours or frames)[-1].removeprefix('File ')}" if frames else ""
