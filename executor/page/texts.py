"""Texts of others as a page may show them, and numbers as people read them."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from executor.console import printable

_LONGEST_LINE = 4000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

#: Control characters but the tab and the end of a line, changes of the direction of writing, halves of characters.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """A text in which nothing is hidden: what has no sign of its own, or turns the line around, stands as its number."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printed(text: str) -> str:
    """Lines of a log without their colours."""
    return _COLOURS.sub("", text)


def read_tail(log: Path, most: int) -> tuple[str, int]:
    """The last lines of a log, no more than `most` bytes of them, with nothing but colours; and the size of all of it."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return "", 0
    if size > most and b"\n" in data[:-1]:
        data = data.partition(b"\n")[2]
    return "\n".join(_line(line) for line in data.removesuffix(b"\n").split(b"\n")) if data else "", size


def _line(line: bytes) -> str:
    text = printable(line, colours=True)
    if len(text) <= _LONGEST_LINE:
        return text
    return f"{text[:_LONGEST_LINE]}\x1b[0m … and {len(text) - _LONGEST_LINE} more characters"


def render_seconds(seconds: float | None) -> str:
    """A duration: `0.34 s`, `12.3 s`, `4 min 05 s`, `1 h 02 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def render_bytes(size: float | None) -> str:
    """An amount of memory: `812 B`, `3.1 MiB`."""
    if size is None:
        return "–"
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 100 else f"{size:.1f} {units[0]}"


def render_time(at: float) -> str:
    """A moment, in the time zone of this machine."""
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
