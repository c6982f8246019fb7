"""The bridge channel: a folder of conda packages made on this machine, for where no conda channel answers.

It begins with `python`, from the interpreter that runs us, and `pip`; `executor.environments.bridge` adds what is made
from wheels. There is one for every interpreter, below `home/channel`, and each is a plain conda channel, but what a solver
gets to see of it is decided request by request: an answer must not depend on what was added before.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from executor import machine
from executor.environments import interpreter
from executor.environments.archives import file_digest
from executor.environments.condapackage import file_name

#: As the only channel of a specification it asks for the bridge, whoever answers.
NAME = "run-local-bridge"

_SUBDIRS = (interpreter.SUBDIR, "noarch")

Record = dict[str, Any]


def make_channel(home: Path, waits: Callable[[], None] = lambda: None) -> Path:
    """The folder of the channel with `python` and `pip`, made now where there is none."""
    folder = home / "channel" / interpreter.identity()
    if not _beginnings(folder):
        with writing(folder, home, waits):
            if not _beginnings(folder):
                add(folder, interpreter.write_packages(folder))
    return folder


def _beginnings(folder: Path) -> list[Record]:
    """The records of `python` and `pip`; empty where one of them is missing."""
    found = [each for each in read_index(folder) if each["build"] == interpreter.BUILD]
    return found if len(found) == 2 and all(package_path(folder, each).exists() for each in found) else []


def beginnings(folder: Path) -> list[Record]:
    """The records of the channel's own `python` and `pip`, in this order."""
    return sorted(_beginnings(folder), key=lambda record: record["name"], reverse=True)


@contextlib.contextmanager
def writing(folder: Path, home: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Be the only one who adds to a channel; what others read meanwhile is whole."""
    with machine.lock_file(home / "locks" / f"channel-{folder.name}.lock", waits):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".half-*"):  # of one who was killed
            shutil.rmtree(left)
        yield


def package_path(folder: Path, record: Record) -> Path:
    """Where the file of a package lies."""
    return folder / str(record["subdir"]) / file_name(record)


def is_whole(folder: Path, record: Record) -> bool:
    """Whether the file of a package is there, and is what its record says."""
    path = package_path(folder, record)
    return path.exists() and file_digest(path) == record["sha256"]


def read_index(folder: Path) -> list[Record]:
    """The records of all packages of a channel."""
    found = []
    for subdir in _SUBDIRS:
        with contextlib.suppress(FileNotFoundError):
            found += json.loads((folder / subdir / "repodata.json").read_bytes())["packages.conda"].values()
    return found


def add(folder: Path, records: Iterable[Record]) -> None:
    """Put packages into the index, beside or in the place of those that it has; their files are there already."""
    known = {file_name(record): record for record in [*read_index(folder), *records]}
    for subdir in _SUBDIRS:
        packages = {name: record for name, record in known.items() if record["subdir"] == subdir}
        index = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages, "repodata_version": 1}
        (folder / subdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".half-") as scratch:
            half = Path(scratch, "repodata.json")
            half.write_text(json.dumps(index, sort_keys=True))
            half.replace(folder / subdir / "repodata.json")


def stored(home: Path) -> list[tuple[Path, Record]]:
    """Every package of every bridge channel of this home, with the folder of its channel."""
    folders = sorted(path for path in (home / "channel").glob("*") if path.is_dir())
    found = [(folder, record) for folder in folders for record in read_index(folder)]
    return sorted(found, key=lambda each: (each[1]["name"], each[1]["version"], each[1]["build"], each[0]))


def export(folder: Path, records: Iterable[Record], target: Path) -> None:
    """Copy packages into another folder, which becomes a channel of them and of those that it held."""
    kept = list(records)
    for record in kept:
        path = package_path(target, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.half")
        shutil.copyfile(package_path(folder, record), half)
        half.replace(path)
    add(target, kept)
