"""Which code of a project a task reaches, read off the source: the code part of the key of a cached call.

    a task's function → what it names, directly or not → the digest of each part, and one of all

Nothing is run. What cannot be seen to be out of reach counts: a call that runs again without need is better than a value
that is no longer true. `docs/caching.md` says what counts and what does not, docs/adr/0019 why.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.manifest import Manifest, TaskEntry
from executor.reach.normal import canonical, digest
from executor.reach.project import Project
from executor.reach.reflection import Extent
from executor.reach.walk import Source, Unknowable, Walk

_PART = re.compile(r"(?P<file>.+?): (?P<kind>function|class|constant|import|top level|order) ?(?P<name>.*)")


@dataclass(frozen=True)
class Reach:
    """What a task reaches.

    parts:        name of each part → SHA-256 of its normalised source, or of the file's content; digest: of all of them
    tasks:        names of the tasks that it may call, itself included, sorted
    environments: names of the environments of these
    """

    parts: Mapping[str, str]
    digest: str
    tasks: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


class Code:
    """The source of a project as it lies below `root`; each module is read once, whatever is asked.

    import_roots: folders, from the root, where modules are found
    manifest:     what was described of it; without it, tasks are those that the source shows to be declared
    """

    def __init__(self, root: Path, import_roots: Sequence[str], manifest: Manifest | None = None) -> None:
        self._source = Source(Project(root, import_roots), manifest)

    def reached(self, task: TaskEntry, brought: Iterable[tuple[str, str]] = ()) -> Reach:
        """What a task reaches; brought: module and qualified name of the classes and functions that its inputs name."""
        walk = Walk(self._source)
        collects = gc.isenabled()
        gc.disable()  # it would go through the syntax trees again and again, for as long as all else takes
        try:
            walk.start(task)
            for module, qualname in brought:
                walk.bring(module, qualname)
            walk.finish()
            parts = walk.parts()
        except Unknowable as exc:
            return self._all(task, exc.extent, exc.reason)
        except RecursionError:
            return self._all(task, "source", "the depth of its source")
        finally:
            if collects:
                gc.enable()
        return _reach(parts, walk.tasks, walk.environments)

    def _all(self, task: TaskEntry, extent: Extent, reason: str) -> Reach:
        """All of the project."""
        parts = {f"all of the project, because of {reason}": ""}
        source = self._source
        for file in sorted(source.project.files):
            tree = source.names.module(file).tree if file.endswith(".py") and extent == "modules" else None
            if tree is None:
                parts[f"file {file}"] = source.project.digest(file)
            else:
                parts[f"module {file}"] = digest(canonical([tree], lambda _: True, all_of_it=True))
        tasks = set(source.manifest.tasks) if source.manifest else set()
        environments = set(source.manifest.environments) if source.manifest else set()
        return _reach(parts, {task.name, *tasks}, {task.environment, *environments})


def _reach(parts: Mapping[str, str], tasks: Iterable[str], environments: Iterable[str]) -> Reach:
    return Reach(parts, digest(json.dumps(sorted(parts.items()))), tuple(sorted(tasks)), tuple(sorted(environments)))


def reached(root: Path, import_roots: Sequence[str], task: TaskEntry, manifest: Manifest | None = None) -> Reach:
    """What a task of the project below `root` reaches; for several tasks of one project see `Code`."""
    return Code(root, import_roots, manifest).reached(task)


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What is different between the parts of two reaches, as `run-local why` says it."""
    changes = [f"{_called(each)} changed" for each in before if each in after and before[each] != after[each]]
    new = [f"{_called(each)} is new" for each in after if each not in before]
    gone = [f"{_called(each)} is gone" for each in before if each not in after]
    return [*sorted(changes), *sorted(new), *sorted(gone)]


def _called(part: str) -> str:
    """A part, as people call it."""
    found = _PART.fullmatch(part)
    if found is None:
        kind, _, name = part.partition(" ")
        return f"{kind} `{name}`" if kind in ("module", "file") else part
    if found["kind"] == "top level":
        return f"what runs when {found['file']} is imported"
    if found["kind"] == "order":
        return f"the order of what is in {found['file']}"
    return f"{found['kind']} `{found['name']}` in {found['file']}"
