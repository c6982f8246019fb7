"""Facts as a person at a terminal sees them: live where stderr is a terminal, plain lines elsewhere.

Everything goes to stderr; stdout is for the result. Nothing here decides anything, and what is shown can be read again
from the record. On a terminal one thread draws: lines are printed above the tree of calls (`tree`), all that have come
since it drew last at once, so that neither many calls nor many lines keep the run waiting, and no line tears the tree.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from executor.console.tree import CallTree
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
_DRAWN_EVERY_S = 0.25
_MOST_UNDRAWN = 2**20  # characters; whoever has more to say draws it himself, and waits for the terminal
_MOST_TOLD = 100  # calls; in a run of more the tree counts those that went well, and only the others have lines
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
        self._tree = CallTree()
        self._told: dict[str, str] = {}
        self._telling = threading.RLock()  # what is known, and lines that are not drawn yet
        self._drawing = threading.RLock()
        self._undrawn: list[Text] = []
        self._undrawn_size = 0
        self._partial: dict[tuple[str, str], bytes] = {}
        self._live = Live(
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=bool(
                sys.stdout and sys.stdout.isatty()
            ),  # what a script prints into a file stays out of it
        )
        self._moves = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet and not beside
        self._over = threading.Event()
        self._artist: threading.Thread | None = None

    def __enter__(self) -> ConsoleView:
        if self._moves:
            self._live.start()
            self._artist = threading.Thread(target=self._draw_often, name="run-local console", daemon=True)
            self._artist.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._artist:
            self._over.set()
            self._artist.join()
            self._artist = None
            self._draw()
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print a line above whatever is live."""
        if self._console.is_terminal:
            self._print(Text(text, style=style))
        elif not self._console.quiet:  # at a hundredth of the price, where there are a thousand calls
            self._console.file.write(text + "\n")
            self._console.file.flush()

    def _print(self, line: Text) -> None:
        if self._artist is None:
            self._console.print(line)
            return
        with self._telling:
            self._undrawn.append(line)
            self._undrawn_size += len(line)
        if self._undrawn_size > _MOST_UNDRAWN:
            self._draw()

    def _draw_often(self) -> None:
        while not self._over.wait(_DRAWN_EVERY_S):
            self._draw()

    def _draw(self) -> None:
        """Print what is to be printed, and the tree as it is now below it."""
        with self._drawing:
            width, height = self._console.size
            with self._telling:
                lines, self._undrawn, self._undrawn_size = self._undrawn, [], 0
                rows = self._tree.rows(height - 2, width - 1)
            with self._console:
                if lines:
                    self._console.print(Text("\n").join(lines))
                self._live.update(Group(*rows), refresh=True)

    def progress(self, environment: str, step: str, detail: str, done: float | None = None) -> None:
        """A step of making an environment; see `executor.environments.Progress`."""
        with self._telling:
            if step == "ready":
                self._tree.built(environment)
                self._told.pop(environment, None)
            elif step == "warning":
                self.say(f"  {environment}: {detail}", "yellow")
            elif step == "import" and not self._verbose:
                return
            elif self._moves and step not in _SAID_AT_ONCE:
                self._tree.building(environment, detail or step, done)
            elif done is None or self._told.get(environment) != step:  # of what goes on, only that it begins
                self.say(f"  {environment}: {detail or step}", "dim")
                self._told[environment] = step

    def __call__(self, fact: Fact) -> None:
        """Take note of a fact."""
        if self._moves:
            with self._telling:
                self._tree.take(fact)
        self._tell(fact)

    def _tell(self, fact: Fact) -> None:
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
        elif not self._moves:
            self.say(f"  · {fact.call} {self._tasks[fact.call]} waits: {fact.reason}", "dim")

    def _attempt_started(self, fact: AttemptStarted) -> None:
        if not self._moves:
            again = f", attempt {fact.attempt}" if fact.attempt > 1 else ""
            self.say(f"  ▶ {fact.call} {self._tasks[fact.call]}{again}", "dim")

    def _attempt_ended(self, fact: AttemptEnded) -> None:
        self._flush(fact.call)
        if fact.outcome == "ok" and self._counts_only:
            return
        mark, style = ("✓", "green") if fact.outcome == "ok" else ("✗", "red")
        note = "" if fact.outcome in ("ok", "raised") else f" ({fact.outcome})"
        self.say(f"  {mark} {fact.call} {self._tasks[fact.call]} {fact.seconds:.1f} s{note}", style)
        for warning in warnings(fact.evidence) if fact.outcome == "ok" else ():
            self.say(f"    {warning}; the task went on", "yellow")

    def _call_ended(self, fact: CallEnded) -> None:
        if fact.status == "cached" and not self._counts_only:
            self.say(f"  ≡ {fact.call} {self._tasks[fact.call]} (cached)", "cyan")

    @property
    def _counts_only(self) -> bool:
        return self._moves and not self._verbose and len(self._tasks) > _MOST_TOLD

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
            self._print(Text.from_ansi(text))
        else:
            self.say(text)


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
