"""What an attempt prints: out of its process at once, so that nothing is lost with it, and from the agent in lines.

A process may be killed in the middle of a line (a timeout, a signal, no memory, `os._exit`), and what it still held in a
buffer would be gone. So Python's own streams keep nothing back here, and C's keep back less than a line. The agent puts
lines together again, so that what stdout and stderr say is not mixed within one.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from typing import Any, TextIO

from executor.worker.masking import Mask

#: How many bytes of what an attempt prints are kept, unless somebody says otherwise.
LOG_LIMIT_BYTES = 64 * 2**20

_LINES = 1  # _IOLBF
_LONGEST_LINE = 8 * 2**10

_libc = ctypes.CDLL(None)


class _Unbuffered(io.BufferedWriter):
    """A binary stream that writes all that it is given, and at once; the raw file below may write a part of it."""

    def write(self, data: Any) -> int:
        """Write all of it."""
        written = super().write(data)
        self.flush()
        return written


def open_streams() -> None:
    """Make new standard streams over the open files 1 and 2."""
    sys.stdout = sys.__stdout__ = _open(1)  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = _open(2)  # type: ignore[misc, assignment]
    with contextlib.suppress(ValueError):  # another C library calls it otherwise
        _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, _LINES, 0)


def flush_streams() -> None:
    """Write what is left at the end, C's own streams included."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the task may have closed it, or put anything in its place
            stream.flush()
    _libc.fflush(None)


def _open(number: int) -> TextIO:
    binary = _Unbuffered(io.FileIO(number, "w", closefd=False))
    return io.TextIOWrapper(binary, "utf-8", "backslashreplace", write_through=True)


class Output:
    """What an attempt writes, on its way through the agent: cut where lines end, and no more than is to be kept.

    limit: how many bytes of both streams together are kept; then one line says that there was more
    mask:  what may not be seen in it
    """

    def __init__(self, limit: int = LOG_LIMIT_BYTES, mask: Mask | None = None) -> None:
        self.written = 0
        self._mask = mask or Mask()
        self._limit = limit
        self._unfinished: dict[str, bytes] = {}

    def take(self, stream: str, data: bytes, *, last: bool = False) -> bytes:
        """What is to be sent now that this was written; a line that is not finished waits, unless it is the `last`."""
        data = self._unfinished.pop(stream, b"") + data
        end = len(data)
        if end <= _LONGEST_LINE and not last:
            end = _end_of_lines(data, end)
        if self._mask and not last and (safe := self._mask.safe_end(data, end)) < end:
            end = _end_of_lines(data, safe) if len(data) <= _LONGEST_LINE else safe
        self._unfinished[stream] = data[end:]
        return self._cut(self._mask.data(data[:end]))

    def _cut(self, data: bytes) -> bytes:
        left = self._limit - self.written
        self.written += len(data)
        if len(data) <= left:
            return data
        if left < 0:
            return b""
        kept = data[:left]
        return kept + b"\n" * (not kept.endswith(b"\n")) + _notice(self._limit).encode()


def _end_of_lines(data: bytes, end: int) -> int:
    """Where the last line that is whole before `end` ends."""
    return max(data.rfind(b"\n", 0, end), data.rfind(b"\r", 0, end)) + 1


def _notice(limit: int) -> str:
    unit, size = next(
        (each for each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if limit % each[1] == 0), ("bytes", 1)
    )
    return f"… output of this attempt beyond {limit // size} {unit} is not kept\n"
