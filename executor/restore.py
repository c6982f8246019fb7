"""What a past run was made of: its project's description, its source, its locks, as the record has them.

A `runs.Request` made of these does what the run did: the same source, the same packages, so the same environments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from executor.data.records import RunView
from executor.data.results import is_whole
from executor.data.store import Store, ValueRef
from executor.errors import UsageError
from executor.manifest import Manifest, parse_manifest


@dataclass(frozen=True, kw_only=True)
class Restored:
    """manifest: the project as it was described, its root being the run's copy of the source; locks: by environment."""

    manifest: Manifest
    locks: Mapping[str, Path]


def restore(view: RunView, home: Path, store: Store) -> Restored:
    """What a run was made of; raises `UsageError` where something of it is gone."""
    if not view.manifest:
        raise _gone(
            view, "its record says nothing of its source", "it ended before it had any, or is of an older version"
        )
    source = home / "snapshots" / view.snapshot
    if not source.is_dir():
        raise _gone(view, "the copy of its source is gone", f"there is no folder {source}")
    if not is_whole(store, ValueRef(sha256=view.manifest, size=0)):
        raise _gone(view, "the description of its source is gone, or damaged", "its digest is in the record")
    try:
        manifest = parse_manifest(json.loads(store.path(view.manifest).read_bytes()))
    except (OSError, ValueError) as exc:
        raise _gone(view, "the description of its source is gone", str(exc)) from exc
    locks = {name: store.path(made["lock_file"]) for name, made in view.environments.items() if made.get("lock_file")}
    if lost := [name for name, path in locks.items() if not is_whole(store, ValueRef(sha256=path.name, size=0))]:
        raise _gone(view, f"the lock of `{lost[0]}` is gone, or damaged", f"its place is {locks[lost[0]]}")
    return Restored(manifest=replace(manifest, root=str(source)), locks=locks)


def _gone(view: RunView, what: str, why: str) -> UsageError:
    hint = f"run `{view.workflow}` again: a new run can be repeated" if view.workflow else ""
    return UsageError(f"run {view.id} cannot be repeated: {what}", why=why, hint=hint)
