"""Which calls of a run need not run: those that the cache has a result of, and those that a run that is resumed has done.

    key(task, terms, inputs) ─► find: taken over from the resumed run, or an entry of the cache ─► a value, or None
                              ─► claim, run, keep

The engine asks; nothing here knows of slots or of time. `key`, `find` and `keep` block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.data.pickles import Name, names_in
from executor.data.results import Claim, Results, digests, is_whole
from executor.data.store import Store, Value, ValueRef, open_value, read_value
from executor.keys import CallKey
from executor.manifest import Manifest, MountEntry, TaskEntry, Terms
from executor.reach import Reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A call of an earlier run that succeeded."""

    run: str
    call: str
    key: str
    value: Mapping[str, Any]
    preview: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A value that need not be computed; run and call: where it was."""

    value: Value
    ref: ValueRef
    preview: Mapping[str, Any] | None
    run: str
    call: str


class Cache:
    """The look-ups of one run. Its methods may be called from several threads.

    keys:  environment → its key
    reach: the code that a task reaches, with the classes and functions that its inputs name
    done:  calls of a run that is resumed; each is taken over once
    fresh: take nothing from the cache (and keep what is computed)
    """

    def __init__(
        self,
        store: Store,
        results: Results,
        *,
        manifest: Manifest,
        keys: Mapping[str, str],
        reach: Callable[[TaskEntry, Iterable[Name]], Reach],
        done: Iterable[Done] = (),
        fresh: bool = False,
    ) -> None:
        self._store, self._results, self._manifest, self._keys = store, results, manifest, keys
        self._reach, self._fresh = reach, fresh
        self._reached: dict[tuple[str, frozenset[Name]], Reach] = {}
        self._lock = threading.Lock()
        self._done: dict[str, list[Done]] = {}
        for each in done:
            self._done.setdefault(each.key, []).append(each)

    def is_asked(self, terms: Terms) -> bool:
        """Whether a call with these terms could have been made before."""
        return bool(self._done) or self.is_kept(terms)

    def is_kept(self, terms: Terms) -> bool:
        """Whether what a call with these terms comes to is kept for later."""
        return terms.cache.behavior != "disable"

    def is_shared(self, terms: Terms) -> bool:
        """Whether another call may compute the same just now, so that it is worth to wait for that."""
        return terms.cache.behavior == "auto" and not self._fresh

    def key(self, task: TaskEntry, terms: Terms, inputs: ValueRef) -> CallKey:
        """The key of a call, its inputs being committed; for the first of a task, the source is read."""
        reached = self._code(task, self._brought(inputs))
        names = sorted({task.environment, *reached.environments} & set(self._keys))
        tasks = {task.name, *reached.tasks}
        entries = {name: self._manifest.environments[name] for name in names}
        variables = {
            f"{name}: {variable}": text
            for name, entry in entries.items()
            for variable, text in (terms.env_vars if name == task.environment else entry.env_vars).items()
        }
        versions = {name: self._manifest.tasks[name].cache.version for name in tasks if name in self._manifest.tasks}
        versions[task.name] = terms.cache.version
        return CallKey(
            task=task.name,
            environments={name: self._keys[name] for name in names},
            code=reached.parts,
            code_digest=reached.digest,
            inputs=_inputs(inputs),
            variables=variables,
            mounts={f"{name}: {m.target}": _mounted(m) for name, entry in entries.items() for m in entry.mounts},
            versions={name: version for name, version in versions.items() if version},
        )

    def find(self, call: str, key: str, terms: Terms) -> Hit | None:
        """What a call need not compute, if its value is whole."""
        with self._lock:
            earlier = self._done.get(key, [])
            same = next((each for each in earlier if each.call == call), earlier[0] if earlier else None)
            if same:
                earlier.remove(same)
        if same and (hit := self._open(same.value, same.preview, same.run, same.call)):
            return hit
        if terms.cache.behavior != "auto" or self._fresh:
            return None
        entry = self._results.find(key)
        return self._open(entry["value"], entry["preview"], entry["run"], entry["call"], whole=True) if entry else None

    def claim(self, key: str) -> Claim | None:
        """The right to compute a result that others may want, too; None while somebody else has it."""
        return self._results.claim(key)

    def keep(self, key: CallKey, entry: Mapping[str, Any]) -> None:
        """Keep a result for later."""
        self._results.put(key.digest, {**entry, "key": key.to_json()})

    def _brought(self, inputs: ValueRef) -> frozenset[Name]:
        """The classes, functions and tasks of the project that inputs name."""
        tasks = self._manifest.tasks
        found = {name for name in names_in(self._store, inputs) if name[0] or name[1] in tasks}
        named = {(tasks[name].module, tasks[name].qualname) if not module else (module, name) for module, name in found}
        return frozenset(name for name in named if name[0] != "executor" and not name[0].startswith("executor."))

    def _code(self, task: TaskEntry, brought: frozenset[Name]) -> Reach:
        of = (task.name, brought)
        if of not in self._reached:
            with self._lock:
                if of not in self._reached:
                    self._reached[of] = self._reach(task, brought)
        return self._reached[of]

    def _open(
        self, told: Mapping[str, Any], preview: Mapping[str, Any] | None, run: str, call: str, *, whole: bool = False
    ) -> Hit | None:
        ref = read_value(told)
        if not whole and not is_whole(self._store, ref):
            return None
        try:
            return Hit(value=open_value(self._store, ref), ref=ref, preview=preview, run=run, call=call)
        except OSError:  # it has just been removed
            return None


def _inputs(ref: ValueRef) -> tuple[str, ...]:
    """The content of a call's inputs, and the names that its files have in the task."""
    names = [f"{file.key}\0{file.name}" for file in ref.files]
    trees = [
        f"{entry.path}\0{entry.kind}\0{entry.link}\0{entry.executable}"
        for file in ref.files
        for entry in file.tree or ()
    ]
    return (*digests(ref), *names, *trees)


def _mounted(mount: MountEntry) -> str:
    """What can be said of mounted data without reading it."""
    path = Path(mount.source).resolve()
    facts = path.stat()
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"
