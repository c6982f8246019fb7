"""A lock as a folder: the prefix that the process runtime runs from.

A prefix has its final name only when it is whole and its own Python has started. `<key>.files` beside it lists what it
holds; a file that is not as it was then makes a new one of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from executor import machine
from executor.data.leases import scratch_folder
from executor.data.store import full_disk
from executor.environments import verify
from executor.environments.lock import Lock, ask_child
from executor.environments.progress import Say
from executor.environments.spec import Spec
from executor.errors import BuildError


def prefix_path(key: str, home: Path) -> Path:
    """Where the prefix with this key is, or will be."""
    return home / "prefixes" / key


def make_prefix(spec: Spec, lock: Lock, key: str, *, home: Path, say: Say) -> Path:
    """The prefix of a lock, made now where there is none, or where it was changed."""
    target = prefix_path(key, home)
    if not damage(target):
        return target
    with machine.lock_file(home / "prefixes" / f"{key}.lock", lambda: say("install", "another run-local builds it")):
        damaged = damage(target)
        if damaged:
            if target.exists():
                say("install", f"it was changed ({damaged}): making it anew")
            if spec.apt:
                say("install", f"no part of a prefix, and to be on this machine: {', '.join(spec.apt)} (apt)")
            with (
                installed(lock, str(target), home=home, say=say) as folder,
                full_disk("a prefix cannot be published"),
            ):
                say("verify", "starting its Python")
                _verify(spec, folder, lock)
                _list_files(folder, target)
                if target.exists():
                    target.rename(folder.with_name("old"))
                folder.rename(target)
    return target


def damage(prefix: Path) -> str:
    """The first file of a prefix that is not as it was when it was made, or why there is none; empty where all is well.

    A file is known by its size and the time of its last change: looking at contents would take longer than a run.
    """
    try:
        listed = json.loads(prefix.with_name(f"{prefix.name}.files").read_bytes())
    except (OSError, ValueError):
        return "it is not there" if not prefix.exists() else "the list of its files is gone"
    if not prefix.exists():
        return "it is not there"
    for folder, files in listed.items():
        for name, size, changed in files:
            try:
                found = os.lstat(f"{prefix}/{folder}/{name}")
            except OSError:
                return f"{folder}/{name} is gone"
            if (found.st_size, found.st_mtime_ns) != (size, changed):
                return f"{folder}/{name} is another"
    return ""


@contextlib.contextmanager
def installed(
    lock: Lock, prefix: str, *, home: Path, say: Say, parts: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """The packages of a lock in a temporary folder, made for the given final prefix.

    parts: sha256 → key of the packages that are wanted as parts of layers; only they, and Python, are installed then
    """
    with full_disk("an environment cannot be built"), scratch_folder(home / "tmp") as scratch:
        folder = scratch / "prefix"
        folder.mkdir()
        _ask(lock, say, folder=str(folder), prefix=prefix, home=str(home), parts=parts)
        yield folder


def fetch(lock: Lock, *, home: Path, say: Say) -> None:
    """Have all archives of a lock in the cache, each as the lock says; raises `BuildError` where one cannot be had."""
    with full_disk("packages cannot be fetched"):
        _ask(lock, say, folder=None, prefix="", home=str(home), parts=None)


def _ask(lock: Lock, say: Say, **request: Any) -> None:
    packages = [asdict(package) for package in lock.packages]
    answer = ask_child("executor.environments.install", {"packages": packages, **request}, say)
    if "error" in answer:
        raise BuildError(**answer["error"])


def _list_files(folder: Path, target: Path) -> None:
    listed: dict[str, list[tuple[str, int, int]]] = {}
    for place, _, names in os.walk(folder):
        found = [(name, os.lstat(f"{place}/{name}")) for name in sorted(names)]
        if found:
            inside = os.path.relpath(place, folder)
            listed[inside] = [(name, facts.st_size, facts.st_mtime_ns) for name, facts in found]
    half = folder.with_name("files")
    half.write_text(json.dumps(listed))
    half.replace(target.with_name(f"{target.name}.files"))


def _verify(spec: Spec, folder: Path, lock: Lock) -> None:
    """Start the Python of a prefix and let it look at its packages; one that fails gets no name."""
    try:
        path = f"{folder}/bin:{os.environ.get('PATH', os.defpath)}"
        variables = {**os.environ, **spec.variables, "PATH": path, "CONDA_PREFIX": str(folder)}
        done = machine.run([str(folder / "bin/python"), *verify.arguments(spec, lock)], cwd=folder, env=variables)
        said = done.stdout + done.stderr
    except OSError as exc:
        said = str(exc)
    if not verify.passed(said):
        raise verify.failure(spec, said)
