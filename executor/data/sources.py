"""Which files of a project are its source: what is hidden, built, installed or run-local's own is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from executor.errors import UsageError

_LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})
_MARKS_OF_AN_ENVIRONMENT = frozenset({"pyvenv.cfg", "conda-meta"})
_MOST_FOLDERS = 20_000


def source_files(root: Path, home: Path) -> Iterator[Path]:
    """The source files below a project's root; raises `UsageError` where the root is no project but half a disk."""
    for count, (folder, names, files) in enumerate(os.walk(root)):
        if count >= _MOST_FOLDERS:
            raise UsageError(
                f"`{root}` is too large to be a project",
                why=f"it has more than {_MOST_FOLDERS} folders, and nothing marks the project",
                hint="run it in the folder of your project, the one with `envs/`",
            )
        is_environment = not _MARKS_OF_AN_ENVIRONMENT.isdisjoint([*names, *files])
        if folder == str(home) or (folder != str(root) and is_environment):
            names.clear()
            continue
        names[:] = [
            name
            for name in names
            if not name.startswith(".") and name not in _LEFT_OUT and not name.endswith(".egg-info")
        ]
        yield from (Path(folder, name) for name in files if not name.startswith("."))
