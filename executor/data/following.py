"""What the calls of a run write while it goes on, for who reads along from another process.

Nothing tells a reader that a file has grown, so it looks a few times a second: at the journal, and at the logs of the
attempts that run just then. The run's lease says when there is no more to come.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.data import leases
from executor.data.records import RunView

_LOOKED_EVERY_S = 0.2
_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that an attempt wrote; whole lines, but for a piece that is the last one, or very long."""

    call: str
    task: str
    attempt: int
    data: bytes


def follow(view: RunView, call: str | None = None) -> Iterator[Piece]:
    """What the calls of a run (or one of them) write, from the beginning until the run has ended."""
    journal, reading = _Growing(view.folder / "journal.jsonl"), dict[tuple[str, int], _Growing]()
    tasks: dict[str, str] = {}
    while True:
        ended = not leases.lease_is_held(view.folder / leases.NAME)
        over: set[tuple[str, int]] = set()
        for fact in journal.facts():
            if fact["fact"] == "CallSubmitted":
                tasks[fact["call"]] = fact["task"]
            elif fact["fact"] == "AttemptStarted" and call in (None, fact["call"]):
                reading[fact["call"], fact["attempt"]] = _Growing(view.log(fact["call"], fact["attempt"]))
            elif fact["fact"] == "AttemptEnded":
                over.add((fact["call"], fact["attempt"]))
        for (name, attempt), log in list(reading.items()):
            last = ended or (name, attempt) in over
            for data in log.pieces(rest=last):
                yield Piece(name, tasks[name], attempt, data)
            if last:
                del reading[name, attempt]
        if ended:
            return
        time.sleep(_LOOKED_EVERY_S)


class _Growing:
    """A file that somebody else appends to, or that is not there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def pieces(self, *, rest: bool) -> Iterator[bytes]:
        """What has come since, as far as lines are whole; with `rest` all of it. A very long line comes in parts."""
        while (piece := self._read_on(_PIECE)) and (rest or b"\n" in piece or len(piece) == _PIECE):
            if not rest and b"\n" in piece:
                piece = piece[: piece.rindex(b"\n") + 1]
            self._read += len(piece)
            yield piece

    def facts(self) -> Iterator[dict[str, Any]]:
        """The lines of a journal that have come since; nothing after a broken one."""
        *lines, _ = self._read_on().split(b"\n")
        for line in lines:
            try:
                fact = json.loads(line)
            except ValueError:
                return
            self._read += len(line) + 1
            yield fact

    def _read_on(self, most: int = -1) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                return file.read(most)
        except FileNotFoundError:
            return b""
