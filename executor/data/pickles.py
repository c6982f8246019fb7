"""Which classes and functions a stored value names, read off its pickle without opening it.

A value that holds an instance of a class of the project comes to life as what that class is when it is opened, so the
class is part of what a call with it reaches. The opcodes of a pickle say its name; nothing of it is run.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from executor.data.store import Store, ValueRef
from executor.worker.payload import is_payload, pickle_of
from executor.worker.protocol import INLINE_BYTES

#: What a task is pickled as: its module and its name follow, or its full name.
_BY_NAME = {("executor.authoring", "_find_task"): 2, ("executor.authoring", "_find_reference"): 1}

Name = tuple[str, str]


def names_in(store: Store, value: ValueRef) -> frozenset[Name]:
    """Module and qualified name of all that a committed value names; of a task referred to by name, "" and that name.

    Blocks while the pickle is read. Raises `OSError` where it is not in the store.
    """
    found: set[Name] = set()
    for sha256, size in [
        (value.sha256, value.size),
        *((each.sha256, each.size) for each in value.files if not each.name),
    ]:
        path = store.path(sha256)
        if size <= INLINE_BYTES:
            found.update(_names(path.read_bytes()))
        else:
            found.update(_names_in_file(path))
    return frozenset(found)


def _names_in_file(path: Path) -> set[Name]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return set(_names(mapped))


def _names(data: bytes | mmap.mmap) -> Iterator[Name]:
    if not is_payload(data):  # a buffer, or JSON
        return
    with memoryview(data) as view:
        text = pickle_of(view)
    reader = _Reader()
    for opcode, argument, _ in pickletools.genops(text) if text else ():
        yield from reader.take(opcode.name, argument)
        if isinstance(argument, (bytes, bytearray)):
            yield from _names(bytes(argument))  # a value that its last receiver could not open


class _Reader:
    """Follows the texts that a pickle puts on its stack, as far as names need them."""

    def __init__(self) -> None:
        self._last: list[Any] = [None, None]  # what was put there, where that is text
        self._memo: dict[Any, Any] = {}
        self._texts: list[str] = []  # of a task that is pickled by name, so far
        self._missing = 0

    def take(self, opcode: str, argument: Any) -> Iterator[Name]:
        """Take note of an opcode; gives the names that are complete with it."""
        if opcode == "MEMOIZE":
            self._memo[len(self._memo)] = self._last[1]
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._last[1]
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            words = str(argument).split(" ", 1) if opcode == "GLOBAL" else self._last
            name = (str(words[0]), str(words[-1]))
            self._texts, self._missing = [], _BY_NAME.get(name, 0)
            self._push(None)
            yield name
        else:
            self._push(self._memo.get(argument) if opcode in ("GET", "BINGET", "LONG_BINGET") else argument)
            if self._missing and len(self._texts) == self._missing:
                yield ("", self._texts[0]) if self._missing == 1 else (self._texts[0], self._texts[1])
                self._missing = 0

    def _push(self, value: Any) -> None:
        self._last = [self._last[1], value if isinstance(value, str) else None]
        if self._missing and isinstance(value, str):
            self._texts.append(value)
