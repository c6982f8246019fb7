"""What the records of runs say in short, in one SQLite file, so that a list of thousands of runs is read at once.

    index.sqlite    runs: one row each, with the size and time of the journal that it was made of; calls: task and key

The folders are the truth. A row counts only as long as its journal is as it was; whatever else is wrong with the file, the
folders are read. A run that ends adds its row, and whoever lists runs adds those that are missing. A damaged file is moved
aside and begun anew; one of a later version, one that cannot be written, and a network file system, on which SQLite's
write-ahead log does not work, are left alone.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor import machine
from executor.data.records import RunView, read_folder, run_ids
from executor.errors import UsageError

NAME = "index.sqlite"
SCHEMA = 1
#: How long to wait for others who write: for what was asked for, and for what another time will do.
_BUSY_S, _LAZY_S = 30.0, 1.0
_TABLES = """
    CREATE TABLE runs (
        run TEXT PRIMARY KEY, journal_bytes INTEGER NOT NULL, journal_ns INTEGER NOT NULL, workflow TEXT NOT NULL,
        status TEXT NOT NULL, runtime TEXT NOT NULL, root TEXT NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL,
        calls TEXT NOT NULL
    );
    CREATE TABLE calls (
        run TEXT NOT NULL, call TEXT NOT NULL, task TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (run, call)
    ) WITHOUT ROWID;
    CREATE INDEX calls_by_task ON calls (task, key);
"""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run in one line.

    status: as in `records.RunView`, or `unreadable`, with `why`; calls: how many of them have which status
    """

    run: str
    workflow: str = ""
    status: str
    runtime: str = ""
    root: str = ""
    started: float = 0.0
    seconds: float = 0.0
    calls: dict[str, int]
    why: str = ""


class _Unusable(Exception):
    """The index cannot be used just now; its text says why, where that matters to somebody."""


def summaries(home: Path, most: int) -> tuple[list[Summary], str]:
    """The newest runs, newest first, and what is to be said about the index, if anything."""
    ids = run_ids(home)
    newest = ids[::-1][:most]
    try:
        known, note = _known(home), ""
    except _Unusable as exc:
        known, note = {}, str(exc)
    found, missing = [], []
    for run in newest:
        state = _state(home, run)
        row = known.get(run)
        if row and state and (row["journal_bytes"], row["journal_ns"]) == state:
            found.append(_summary_of_row(row))
            continue
        try:
            view = read_folder(home / "runs" / run)
        except UsageError as exc:
            found.append(Summary(run=run, status="unreadable", calls={}, why=exc.why))
            continue
        found.append(_summary(view))
        if state and view.status != "running":
            missing.append((view, state))
    if missing or len(known) > len(ids):
        with contextlib.suppress(_Unusable):
            _write(home, missing, there=set(ids))
    return found, note


def add_run(home: Path, view: RunView) -> None:
    """Put a run that ended into the index, if that can be used."""
    state = _state(home, view.id)
    if state and view.status != "running":
        with contextlib.suppress(_Unusable):
            _write(home, [(view, state)], patient=True)


def prune(home: Path) -> None:
    """Forget the runs that are there no more."""
    if (home / NAME).exists():
        with contextlib.suppress(_Unusable):
            _write(home, [], there=set(run_ids(home)))


def rebuild(home: Path, progress: Callable[[int, int], None] = lambda done, of: None) -> tuple[int, str]:
    """Make the index anew from the folders: how many runs are in it, and what is to be said of the others, if anything."""
    ids = run_ids(home)
    views: list[tuple[RunView, tuple[int, int]]] = []
    unreadable = 0
    for number, run in enumerate(ids):
        progress(number, len(ids))
        state = _state(home, run)
        try:
            view = read_folder(home / "runs" / run)
        except UsageError:
            unreadable += 1
            continue
        if state and view.status != "running":
            views.append((view, state))
    for last in (False, True):
        try:
            _write(home, views, anew=True, patient=True)
            break
        except _Unusable as exc:  # a damaged one is out of the way now
            if last:
                hint = "nothing needs it: the records are read instead"
                why = str(exc) or "somebody writes to it all the time"
                raise UsageError("the index cannot be made anew", why=why, hint=hint) from exc
    return len(views), f"{unreadable} cannot be read, and are left out" if unreadable else ""


def describe(home: Path) -> str:
    """What there is of the index, in words."""
    try:
        known = _known(home)
    except _Unusable as exc:
        return f"not used: {str(exc) or 'somebody writes to it just now'}"
    return f"{len(known)} of {len(run_ids(home))} runs"


def runs_of(home: Path, task: str, *, before: str, most: int) -> list[str]:
    """The newest runs before one that have calls of a task with a key, as far as the index knows them."""
    query = "SELECT DISTINCT run FROM calls WHERE task = ? AND key != '' AND run < ? ORDER BY run DESC LIMIT ?"
    try:
        with _opened(home, _LAZY_S) as db:
            return [run for (run,) in db.execute(query, (task, before, most))]
    except _Unusable:
        return []


# -- inside ------------------------------------------------------------------------------------------------------------


def _state(home: Path, run: str) -> tuple[int, int] | None:
    """Size and time of a run's journal."""
    try:
        facts = (home / "runs" / run / "journal.jsonl").stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _summary(view: RunView) -> Summary:
    calls: dict[str, int] = {}
    for call in view.calls.values():
        calls[call.status] = calls.get(call.status, 0) + 1
    return Summary(
        run=view.id,
        workflow=view.workflow,
        status=view.status,
        runtime=view.runtime,
        root=view.root,
        started=view.started,
        seconds=view.seconds,
        calls=calls,
    )


def _summary_of_row(row: sqlite3.Row) -> Summary:
    told = {name: row[name] for name in ("run", "workflow", "status", "runtime", "root", "started", "seconds")}
    return Summary(**told, calls=json.loads(row["calls"]))


def _known(home: Path) -> dict[str, sqlite3.Row]:
    """The rows of all runs; none where there is no index yet."""
    if not (home / NAME).exists():
        _demand_local(home)
        return {}
    with _opened(home, _LAZY_S) as db:
        return {row["run"]: row for row in db.execute("SELECT * FROM runs")}


def _write(
    home: Path,
    views: Iterable[tuple[RunView, tuple[int, int]]],
    *,
    there: set[str] | None = None,
    anew: bool = False,
    patient: bool = False,
) -> None:
    """Put runs into the index, in the place of what it says of them.

    there: the runs that there are; others are forgotten; anew: all are. patient: whether to wait long for others who write.
    """
    with _opened(home, _BUSY_S if patient else _LAZY_S) as db:
        db.execute("BEGIN IMMEDIATE")
        if anew:
            _create(db)
        if there is not None:
            _forget(db, [row["run"] for row in db.execute("SELECT run FROM runs") if row["run"] not in there])
        for view, state in views:
            _forget(db, [view.id])
            told = _summary(view)
            row = (told.run, *state, told.workflow, told.status, told.runtime, told.root, told.started, told.seconds)
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, json.dumps(told.calls)))
            rows = ((view.id, call.id, call.task, call.call_key) for call in view.calls.values())
            db.executemany("INSERT INTO calls VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")


def _forget(db: sqlite3.Connection, runs: Sequence[str]) -> None:
    for table in ("runs", "calls"):
        db.executemany(f"DELETE FROM {table} WHERE run = ?", [(run,) for run in runs])  # noqa: S608  names of ours


def _demand_local(home: Path) -> None:
    if kind := machine.network_file_system(home):
        raise _Unusable(f"{home} is on a network file system ({kind}), so every record is read")


@contextlib.contextmanager
def _opened(home: Path, busy_s: float) -> Iterator[sqlite3.Connection]:
    """The index, made if it is missing; raises `_Unusable`."""
    path = home / NAME
    _demand_local(home)
    number = None
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=busy_s, isolation_level=None)) as db:
            number = path.stat().st_ino
            db.row_factory = sqlite3.Row
            _prepare(db)
            yield db
    except sqlite3.OperationalError as exc:
        if "locked" in str(exc):
            raise _Unusable from exc  # somebody writes to it just now
        raise _Unusable(f"{path} cannot be used ({exc}), so every record is read") from exc
    except (sqlite3.Error, OSError) as exc:
        raise _Unusable(_set_aside(path, number, exc)) from exc


def _prepare(db: sqlite3.Connection) -> None:
    [version] = db.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA:
        return
    if version > SCHEMA:
        raise _Unusable(f"{NAME} was made by a later version of run-local, so every record is read")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:  # nobody else was first
        _create(db)
    db.execute("COMMIT")


def _create(db: sqlite3.Connection) -> None:
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        db.execute(f'DROP TABLE "{name}"')
    for statement in filter(str.strip, _TABLES.split(";")):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def _set_aside(path: Path, number: int | None, problem: Exception) -> str:
    """Move a damaged index out of the way, unless somebody did just now; says so."""
    aside = f"{NAME}.damaged-{time.time_ns()}"
    try:
        with machine.lock_file(path.with_name("tmp") / "index.lock"):
            if path.stat().st_ino == number:
                for end in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        path.with_name(NAME + end).rename(path.with_name(aside + end))
    except OSError as exc:
        return f"{NAME} is damaged ({problem}), and cannot be moved aside ({exc.strerror}), so every record is read"
    return f"{NAME} was damaged ({problem}) and is now {aside}; another one is made from the records"
