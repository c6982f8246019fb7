"""Which environments are used, by whom and since when: what housekeeping has to know before it removes anything.

`home/used/<key>` is held locked, shared, by every build and run that uses the environment, and its time is that of the last
use; `<key>.json` says what the environment is made of. `home/used/.making` is held by whoever fetches, unpacks or solves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MAKING = ".making"


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a made environment consists of.

    lock:     the lock that it was made from
    archives: sha256 of each of its packages
    parts:    keys of the parts of its image's layers; none for a prefix
    """

    name: str
    key: str
    lock: str
    archives: tuple[str, ...]
    parts: tuple[str, ...]


@contextlib.contextmanager
def hold(home: Path, key: str) -> Iterator[None]:
    """Use an environment, or with `MAKING` the caches: what nobody removes meanwhile."""
    path = home / "used" / key
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(path)
        yield


@contextlib.contextmanager
def take(home: Path, key: str) -> Iterator[bool]:
    """Have what `hold` holds for oneself; False where somebody uses it."""
    path = home / "used" / key
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def note(home: Path, use: Use) -> None:
    """Keep what an environment consists of."""
    path = home / "used" / f"{use.key}.json"
    descriptor, half = tempfile.mkstemp(dir=path.parent, prefix="half-")  # two environments may have one key
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(use), file)
    Path(half).replace(path)


def noted(home: Path) -> dict[str, Use]:
    """What is known of the environments that were made here, by key."""
    found = {}
    for path in (home / "used").glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            read: Mapping[str, object] = json.loads(path.read_bytes())
            use = Use(**{**read, "archives": tuple(read["archives"]), "parts": tuple(read["parts"])})  # type: ignore[arg-type]
            found[use.key] = use
    return found


def last_used(home: Path, key: str) -> float | None:
    """When an environment was last used, in seconds since 1970."""
    try:
        return (home / "used" / key).stat().st_mtime
    except OSError:
        return None


def forget(home: Path, key: str) -> None:
    """An environment is there no more."""
    (home / "used" / f"{key}.json").unlink(missing_ok=True)
    (home / "used" / key).unlink(missing_ok=True)
