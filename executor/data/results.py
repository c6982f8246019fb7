"""Results by the keys of their calls: `results/<2>/<key>.json`, which is all that the cache is.

    {"value": a stored value, "preview", "key": the parts of the key, "run", "call", "seconds", "at"}

An entry is written once its value is committed. One whose value is not in the store any more, or not what its digest
says, is thrown out where it is found, with the content that is wrong, and the call runs again.

Who is about to compute a result claims its key, so that several runs that want the same compute it once. A claim is a
file that its process holds locked: the kernel gives it back however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from executor.data.store import Store, ValueRef, full_disk, read_value

_CHUNK = 2**20


class Results:
    """The results of one RUN_LOCAL_HOME. Safe for several processes."""

    def __init__(self, home: Path, store: Store) -> None:
        self._folder, self._store = home / "results", store

    def find(self, key: str) -> dict[str, Any] | None:
        """The entry of a key, if its value is whole. Blocks while all of that is read."""
        path = self._path(key)
        try:
            entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            value = read_value(entry["value"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            path.unlink(missing_ok=True)
            return None
        if not is_whole(self._store, value):
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its last use
        return entry

    def put(self, key: str, entry: Mapping[str, Any]) -> None:
        """Keep an entry; one that is there already gives way to it."""
        path = self._path(key)
        with full_disk("a result cannot be kept for later"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, prefix=".new-", delete=False, encoding="utf-8"
            ) as file:
                json.dump(entry, file, separators=(",", ":"))
            Path(file.name).replace(path)

    def claim(self, key: str) -> Claim | None:
        """The right to compute a result, until it is given back; None while somebody else has it."""
        path = self._path(key).with_suffix(".claim")
        with full_disk("a result cannot be claimed"):
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = path.open("ab")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    return None
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        return Claim(path, file)
                file.close()  # whoever had it has just removed it

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


class Claim:
    """The right to compute a result."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def give_back(self) -> None:
        """Let others have it; twice is fine."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


def is_whole(store: Store, value: ValueRef) -> bool:
    """Whether all content of a value is in the store as its digests say; what is wrong there is removed."""
    whole = True
    for sha256 in dict.fromkeys(digests(value)):
        try:
            with store.path(sha256).open("rb") as file:
                hasher = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    hasher.update(chunk)
            if hasher.hexdigest() != sha256:
                store.path(sha256).unlink(missing_ok=True)
                whole = False
        except OSError:
            whole = False
    return whole


def digests(value: ValueRef) -> Iterator[str]:
    """The digests of all content of a value."""
    yield value.sha256
    for file in value.files:
        if file.tree is None:
            yield file.sha256
        else:
            yield from (entry.sha256 for entry in file.tree if entry.kind == "file")
