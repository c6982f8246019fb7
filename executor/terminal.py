"""What a person sits at, lent to an attempt: the terminal, through a pseudo-terminal of ours, or the standard streams.

    keys ─► our terminal, raw ─► one end of the pseudo-terminal ┆ the other end ─► the attempt's stdin, stdout and stderr

The other end is an open file and goes with the attempt's TASK frame, so nothing of this is asked of an engine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

_CHUNK = 64 * 2**10

Mode = Literal["shell", "pdb", "command"]


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """What somebody wants to do where a call would run.

    command: what runs in the place of the task; empty for a shell, and for `pdb`, which runs the task
    files:   stdin, stdout and stderr; controlling: they are a terminal that shall be the attempt's own
    """

    mode: Mode
    command: tuple[str, ...] = ()
    files: tuple[int, int, int] = (0, 1, 2)
    controlling: bool = False

    def told(self) -> dict[str, Any]:
        """What an attempt is told of it; the files are the last that come with the frame."""
        return {"mode": self.mode, "command": list(self.command), "controlling": self.controlling}

    def copies(self) -> list[int]:
        """The files once more, to be sent."""
        return [os.dup(fd) for fd in self.files]


@dataclass
class Lent:
    """The user's terminal while somebody else has it. `begin` takes it, as late as there is something to see."""

    files: tuple[int, int, int] = (0, 1, 2)
    controlling: bool = False
    _ours: int = -1
    _left: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def begin(self) -> None:
        """Give every key to the attempt, and show what it writes."""
        if self.controlling:
            self._left.enter_context(_raw(0))
            self._left.enter_context(_sized(self._ours))
            self._left.enter_context(_relayed(self._ours))

    def end(self) -> None:
        """The terminal is the user's again, as it was; twice is fine."""
        self._left.close()


@contextlib.contextmanager
def lend() -> Iterator[Lent]:
    """Lend the terminal, where there is one; else the standard streams as they are."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield Lent()
        return
    ours, theirs = os.openpty()
    lent = Lent(files=(theirs, theirs, theirs), controlling=True, _ours=ours)
    try:
        yield lent
    finally:
        lent.end()
        os.close(theirs)
        os.close(ours)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """The terminal hands over every key, also Ctrl-C: the attempt's own makes signals of them."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _sized(ours: int) -> Iterator[None]:
    """The other terminal has the size of the user's, whenever that changes."""

    def copy(*_: object) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(ours, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    copy()
    before = signal.signal(signal.SIGWINCH, copy)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _relayed(ours: int) -> Iterator[None]:
    """What is typed goes there, what is written comes here; at the end, all that was written before it."""
    os.set_blocking(ours, False)  # who does not read what is typed holds up nothing else
    wakes, wake = os.pipe()
    relay = threading.Thread(target=_relay, args=(ours, wakes), name="terminal", daemon=True)
    relay.start()
    try:
        yield
    finally:
        os.write(wake, b"x")
        relay.join()
        os.close(wakes)
        os.close(wake)


def _relay(ours: int, wakes: int) -> None:
    typed = b""
    keys_end = ending = False
    while True:
        wanted = [ours] if ending else [ours, wakes] if typed or keys_end else [ours, wakes, 0]
        ready, takes, _ = select.select(wanted, [ours] if typed and not ending else [], [], 0 if ending else None)
        if ending and not ready:
            return
        ending = ending or wakes in ready
        if ours in ready and not _show(ours):
            return
        if 0 in ready:
            typed = _read(0)
            keys_end = not typed
        if takes:
            with contextlib.suppress(BlockingIOError):
                typed = typed[os.write(ours, typed) :]


def _show(ours: int) -> bool:
    """Show what was written; False where nobody has the other end any more."""
    view = memoryview(_read(ours))
    shown = bool(view)
    while view:
        view = view[os.write(1, view) :]
    return shown


def _read(fd: int) -> bytes:
    """What can be read; nothing at the end."""
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""
