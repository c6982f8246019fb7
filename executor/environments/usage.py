"""Which environments are used, by whom and since when: what housekeeping has to know before it removes anything.

`home/used/<key>` is held locked, shared, by every build and run that uses the environment, and its time is that of the last
use; `<key>.json` says what the environment is made of. `home/used/.making` is held by whoever fetches, unpacks or solves,
`home/used/.recording` by every run, and by whoever else puts values into the store.

Several homes may share an engine, and with it images. So whoever holds something also has an abstract socket with its name,
which every process of this machine sees, and which the kernel takes away with its owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from executor import machine

MAKING = ".making"
RECORDING = ".recording"
_SHOWN = "run-local/{}/"


@dataclass(frozen=True, kw_only=True)
class Use:
    """What the environments with one key consist of; what is made depends on no name, so several may have it.

    names:    the environments
    locks:    the locks that they were made from
    archives: sha256 of each of their packages
    parts:    keys of the parts of their images' layers; none for a prefix
    """

    key: str
    names: tuple[str, ...]
    locks: tuple[str, ...]
    archives: tuple[str, ...]
    parts: tuple[str, ...]


@contextlib.contextmanager
def hold(home: Path, key: str) -> Iterator[None]:
    """Use an environment, or with `MAKING` the caches, with `RECORDING` the values: what nobody removes meanwhile.

    Its last use is the end of this.
    """
    path = home / "used" / key
    with _shown(key), _locked(path, fcntl.LOCK_SH):
        os.utime(path)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # somebody removed the home
                os.utime(path)


@contextlib.contextmanager
def take(home: Path, key: str) -> Iterator[bool]:
    """Have what `hold` holds for oneself; False where somebody uses it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_locked(home / "used" / key, fcntl.LOCK_EX | fcntl.LOCK_NB))
            alone = True
        except BlockingIOError:
            alone = False
        yield alone


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold the file at a path locked; once more where the one that we waited for was forgotten meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with machine.keep_from_forks(path.open("ab")) as file:
            fcntl.flock(file, how)
            if _is_at(file.fileno(), path):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _shown(key: str) -> Iterator[None]:
    with machine.keep_from_forks(socket.socket(socket.AF_UNIX)) as name:
        name.bind(f"\0{_SHOWN.format(key)}{uuid.uuid4().hex[:12]}")
        yield


def is_shown(key: str) -> bool:
    """Whether somebody on this machine uses what has this key, in whichever home."""
    return f"@{_SHOWN.format(key)}" in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")


def note(home: Path, use: Use) -> None:
    """Keep what an environment consists of, beside what is known of others with the same key."""
    path = home / "used" / f"{use.key}.json"
    with machine.lock_file(path.with_name(".noting")):
        known = _read(path)
        if known:
            names, locks = (
                tuple(dict.fromkeys(each)) for each in ((*known.names, *use.names), (*known.locks, *use.locks))
            )
            use = replace(use, names=names, locks=locks)
        if use != known:
            descriptor, half = tempfile.mkstemp(dir=path.parent, prefix="half-")
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(use), file)
            Path(half).replace(path)


def noted(home: Path) -> dict[str, Use | None]:
    """What is known of the environments that were made here, by key; None where the note is damaged."""
    return {path.stem: _read(path) for path in (home / "used").glob("*.json")}


def _read(path: Path) -> Use | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        read: Mapping[str, str] = json.loads(path.read_bytes())
        several = {name: tuple(read[name]) for name in ("names", "locks", "archives", "parts")}
        return Use(key=read["key"], **several)
    return None


def last_used(home: Path, key: str) -> float | None:
    """When an environment was last used, in seconds since 1970; where nobody knows, when it was made."""
    for path in (home / "used" / key, home / "used" / f"{key}.json"):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return None


def forget(home: Path, key: str) -> None:
    """An environment is there no more."""
    (home / "used" / f"{key}.json").unlink(missing_ok=True)
    (home / "used" / key).unlink(missing_ok=True)
