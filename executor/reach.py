"""The code that a task reaches, for the key of its calls: as yet, all source of the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.manifest import TaskEntry


@dataclass(frozen=True)
class Reach:
    """What a task reaches. parts: name of each part → digest; digest: of all of them."""

    parts: Mapping[str, str]
    digest: str
    tasks: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


def reached(root: Path, import_roots: Sequence[str], task: TaskEntry) -> Reach:
    """What a task reaches in a snapshot."""
    del import_roots, task
    return Reach({"project": root.name}, root.name)
