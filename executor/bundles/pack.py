"""A run into a bundle: its record, its source, its locks, what they name, and the values that came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from executor import dockerd, machine
from executor.bundles.archive import write_bundle
from executor.data.leases import scratch_folder
from executor.data.records import RunView
from executor.data.results import digests
from executor.data.store import Store, ValueRef, read_value
from executor.environments import find_spec
from executor.environments.archives import Archive, archive_path, missing
from executor.environments.base import find_base
from executor.environments.lock import read_lock
from executor.environments.prefix import fetch
from executor.environments.progress import Progress
from executor.errors import UsageError
from executor.restore import Restored, restore
from executor.version import VERSION

#: A value that came of a call is taken along up to this size, so that it can be said how far another one is from it.
MOST_VALUE_BYTES = 16 * 2**20


def make_bundle(
    view: RunView, home: Path, target: Path, progress: Progress, *, images: bool
) -> tuple[str, dict[str, Any]]:
    """Write a run to a file; answers with the digest of that, and what it is of. Packages that are not here are fetched.

    images: take the images of its environments along, instead of the packages that they are made of

    Raises `BuildError` where a package cannot be had, `UsageError` where something of the run is gone, and `MachineError`
    where no engine answers that has its images.
    """
    store = Store(home, home / "tmp")
    made = restore(view, home, store)
    if images and view.runtime != "docker":
        raise UsageError(f"run {view.id} has no images", why="it ran as processes", hint="leave `--images` out")
    members: dict[str, Path | bytes] = {"record/journal.jsonl": view.folder / "journal.jsonl"}
    source = Path(made.manifest.root)
    members.update(
        (f"source/{path.relative_to(source)}", path)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    for digest in (view.manifest, *(made["lock_file"] for made in view.environments.values()), *_values(view, store)):
        if not store.path(digest).exists():
            raise _gone(view, f"a value of it is not in the store any more: {digest}")
        members[f"store/{digest}"] = store.path(digest)
    if not images:
        members.update(_packages(view, made, home, progress))
    about = {"run": view.id, "workflow": view.workflow, "runtime": view.runtime, "version": VERSION, "host": view.host}
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    with scratch_folder(home / "tmp") as scratch:
        saved = _save_images(view, made, home, scratch, environments=images) if view.runtime == "docker" else {}
        members.update((f"images/{number}.tar", path) for number, path in enumerate(saved.values()))
        about["images"] = list(saved)
        digest = write_bundle(target, about, members)
    return digest, {**about, "members": len(members)}


def _values(view: RunView, store: Store) -> Iterator[str]:
    """The digests of the inputs of the run, and of the values of its calls as far as they are not too large."""
    root = view.root_call
    if root is None or root.inputs is None:
        raise _gone(view, "it ended before its inputs were stored")
    yield from digests(read_value(root.inputs))
    for call in view.calls.values():
        if call.value and _size(value := read_value(call.value)) <= MOST_VALUE_BYTES:
            yield from (digest for digest in digests(value) if store.path(digest).exists())


def _size(value: ValueRef) -> int:
    return value.size + sum(file.size + sum(entry.size for entry in file.tree or ()) for file in value.files)


def _packages(view: RunView, made: Restored, home: Path, progress: Progress) -> Iterator[tuple[str, Path]]:
    """The archives of the locks, by the paths that they have in a bundle; each is what its lock says."""
    for name, path in made.locks.items():
        lock = read_lock(path)
        archives = [Archive(name=each.name, url=each.url, sha256=each.sha256) for each in lock.packages]
        if machine.offline() and (away := missing(archives, home)):
            told = f"the archive of `{away[0].name}` is not here, and nothing is fetched offline"
            raise _gone(view, told, "leave `--offline` out, or take the images: `--images`")
        fetch(lock, home=home, say=partial(progress, name))
        yield from ((f"packages/{each.sha256}/{each.file_name}", archive_path(each, home)) for each in archives)


def _save_images(view: RunView, made: Restored, home: Path, scratch: Path, *, environments: bool) -> dict[str, Path]:
    """Reference → archive of the base images of a run, and of the images of its environments where they are wanted."""
    references: list[str] = []
    with contextlib.closing(dockerd.connect()) as client:
        for name, ready in view.environments.items():
            base = find_base(find_spec(made.manifest, name), client, home=home, say=lambda *_: None, make=False)
            if base is None:
                raise _gone(view, f"the base image of `{name}` is not in the engine any more")
            references += [base.reference, *([ready["image"]] if environments else [])]
        saved = {reference: scratch / f"{number}.tar" for number, reference in enumerate(dict.fromkeys(references))}
        for reference, target in saved.items():
            dockerd.save(client, reference, target)
    return saved


def _gone(view: RunView, why: str, hint: str = "") -> UsageError:
    return UsageError(f"run {view.id} cannot be bundled", why=why, hint=hint or f"run `{view.workflow}` again")
