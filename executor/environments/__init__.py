"""Environments: from what a user wrote to something that a task can run in.

    spec → lock → prefix                for the process runtime
                → image (on a base)     for Docker

`build_all` is the way through all of it; each step is kept by content, so a second call finds everything made.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor import dockerd, machine
from executor.data.leases import scratch_folder
from executor.environments import archives, image, prefix, usage
from executor.environments.base import Base, find_base
from executor.environments.lock import (
    Lock,
    Request,
    differences,
    find_lock,
    is_locked,
    last_lock,
    lock,
    read_lock,
)
from executor.environments.progress import Progress, Say, side_by_side
from executor.environments.spec import Spec, find_spec, read_spec, spec_names
from executor.environments.usage import Use
from executor.errors import BuildError, EnvironmentFailed, LockError

__all__ = [
    "Builder",
    "Built",
    "Check",
    "Lock",
    "Progress",
    "Request",
    "Spec",
    "State",
    "find_spec",
    "read_spec",
    "spec_names",
]

_RECIPE = 3
_MOST_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Built:
    """An environment that a task can run in: `image` for Docker, `prefix` for the process runtime.

    variables: what its specification sets; an image has them in itself
    key:     the same for the same packages, base and variables, on any machine
    seconds: how long it took, also where it was found built
    """

    name: str
    key: str
    python: str
    image: str | None
    prefix: Path | None
    variables: Mapping[str, str] = field(default_factory=dict)
    lock: Path
    seconds: float = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class State:
    """How far an environment has come; `key` and `python` are known once it is locked.

    problem: why a run would refuse the lock, in a word or two; empty where it would not
    """

    spec: Spec
    lock: Path | None
    problem: str
    key: str
    python: str
    packages: int
    built: bool


@dataclass(frozen=True, kw_only=True)
class Check:
    """Whether a lock fits its specification.

    differences: what one asks for and the other does not; empty where they fit
    solved:      what solving now would give, where they do not fit and it can be had
    """

    lock: Lock | None
    differences: list[str]
    solved: Lock | None


class Builder:
    """Makes environments for one runtime; with Docker it holds a connection to the engine."""

    def __init__(self, runtime: str, home: Path, progress: Progress) -> None:
        self._home, self._progress = home, progress
        self._client: Any = dockerd.connect() if runtime == "docker" else None
        self._held = contextlib.ExitStack()

    def close(self) -> None:
        """Close the connection to the engine, and give back what was built: housekeeping may have it."""
        self._held.close()
        if self._client:
            self._client.close()

    def build_all(
        self,
        specs: Sequence[Spec],
        *,
        root: Path | None = None,
        locked: Callable[[Mapping[str, Lock]], None] = lambda _: None,
        ready: Callable[[Built], None] = lambda _: None,
    ) -> dict[str, Built]:
        """Lock and build environments, several at once, or find them built; by name.

        specs:  those that are needed first come first
        root:   their project; what its other environments hold decides the order of layers, too
        locked: told of all locks, before anything is built
        ready:  told of each, in that order

        Raises `EnvironmentFailed` or `MachineError`.
        """
        if machine.offline():
            self._refuse_what_needs_network(specs)
        with usage.hold(self._home, usage.MAKING):
            built = self._build_all(specs, root, locked)
        for each in built:
            ready(each)
        return {each.name: each for each in built}

    def _build_all(
        self, specs: Sequence[Spec], root: Path | None, tell: Callable[[Mapping[str, Lock]], None]
    ) -> list[Built]:
        began = time.monotonic()
        locked = dict(zip(specs_by_name(specs), self._side_by_side(self._lock, specs), strict=True))
        tell({name: made for name, (_, made) in locked.items()})
        popularity = _Popularity([made for _, made in locked.values()], lambda: self._locks_beside(root, specs))

        def build(spec: Spec, say: Say) -> Built:
            base, made = locked[spec.name]
            return self._build(spec, base, made, popularity, began, say)

        return self._side_by_side(build, specs)

    def build_spec(self, spec: Spec) -> Built:
        """Lock and build one environment."""
        return self.build_all([spec])[spec.name]

    def lock(self, spec: Spec, request: Request | None = None) -> tuple[Base | None, Lock]:
        """The lock of a specification, and the base that it was made for; made anew where that is requested."""
        with usage.hold(self._home, usage.MAKING):
            return self._lock(spec, self._say(spec.name), request)

    def check(self, spec: Spec) -> Check:
        """Whether the lock of a specification, committed or made here, fits it; nothing is changed."""
        _, glibc = self._look_at_base(spec)
        path = find_lock(spec, home=self._home, glibc=glibc)
        path = path if path.exists() else last_lock(spec, home=self._home) or path
        if not path.exists():
            return Check(lock=None, differences=[], solved=None)
        try:
            found = read_lock(path)
        except LockError as exc:
            return Check(lock=None, differences=[str(exc)], solved=None)
        if found.spec == spec.digest:
            return Check(lock=found, differences=[], solved=None)
        solved = None
        if not machine.offline():
            making = usage.hold(self._home, usage.MAKING)
            with making, contextlib.suppress(LockError), scratch_folder(self._home / "tmp") as scratch:
                request = Request(path=scratch / "conda-lock.yml", keep=found)
                solved = lock(spec, home=self._home, glibc=glibc, say=self._say(spec.name), request=request)
        return Check(lock=found, differences=differences(found, spec) or ["the specification changed"], solved=solved)

    def look(self, spec: Spec) -> State:
        """How far an environment has come, without making anything; a base that is not there counts as this machine's."""
        base, glibc = self._look_at_base(spec)
        found = find_lock(spec, home=self._home, glibc=glibc)
        if not found.exists():
            return State(spec=spec, lock=None, problem="", key="", python="", packages=0, built=False)
        try:
            locked = read_lock(found)
        except LockError:
            return State(spec=spec, lock=found, problem="unreadable", key="", python="", packages=0, built=False)
        problem = "" if locked.spec == spec.digest else "out of date"
        key = _key(spec, locked, base)
        if self._client:
            built = bool(base) and image.find_image(self._client, spec.name, key) is not None
        else:
            built = not prefix.damage(prefix.prefix_path(key, self._home))
        return State(
            spec=spec,
            lock=found,
            problem=problem,
            key=key,
            python=locked.python,
            packages=len(locked.packages),
            built=built and not problem,
        )

    def _lock(self, spec: Spec, say: Say, request: Request | None = None) -> tuple[Base | None, Lock]:
        base = find_base(spec, self._client, home=self._home, say=say) if self._client else None
        glibc = base.glibc if base else machine.glibc_version()
        return base, lock(spec, home=self._home, glibc=glibc, say=say, request=request)

    def _build(
        self, spec: Spec, base: Base | None, locked: Lock, popularity: _Popularity, began: float, say: Say
    ) -> Built:
        key = _key(spec, locked, base)
        self._held.enter_context(usage.hold(self._home, key))
        made_image, made_prefix = None, None
        if base:
            made_image = image.find_image(self._client, spec.name, key) or image.make_image(
                spec, locked, base, key, self._client, home=self._home, popularity=popularity.count, say=say
            )
        else:
            made_prefix = prefix.make_prefix(spec, locked, key, home=self._home, say=say)
        self._note(spec, key, locked)
        say("ready", "")
        return Built(
            name=spec.name,
            key=key,
            python=locked.python,
            image=made_image,
            prefix=made_prefix,
            variables=spec.variables,
            lock=locked.path,
            seconds=round(time.monotonic() - began, 3),
        )

    def _note(self, spec: Spec, key: str, locked: Lock) -> None:
        """Let housekeeping know what an environment consists of."""
        parts = image.part_keys(locked).values() if self._client else ()
        archives = tuple(package.sha256 for package in locked.packages)
        locks = (str(locked.path),)
        usage.note(self._home, Use(key=key, names=(spec.name,), locks=locks, archives=archives, parts=tuple(parts)))

    def _locks_beside(self, root: Path | None, specs: Sequence[Spec]) -> list[Lock]:
        """The locks of the project's other environments, where there are any that can be read."""
        names = {spec.name for spec in specs}
        found = []
        for name, path in (spec_names(root) if root else {}).items():
            with contextlib.suppress(EnvironmentFailed):
                spec = read_spec(path, name, root)
                _, glibc = self._look_at_base(spec)
                if name not in names and is_locked(spec, home=self._home, glibc=glibc):
                    found.append(read_lock(find_lock(spec, home=self._home, glibc=glibc)))
        return found

    def _look_at_base(self, spec: Spec) -> tuple[Base | None, str]:
        base = None
        if self._client:
            base = find_base(spec, self._client, home=self._home, say=self._say(spec.name), make=False)
        return base, base.glibc if base else machine.glibc_version()

    def _refuse_what_needs_network(self, specs: Sequence[Spec]) -> None:
        """Find all that would have to be fetched, before anything is made."""
        lacking = []
        for spec in specs:
            base, glibc = self._look_at_base(spec)
            if self._client and not base:
                lacking.append(f"`{spec.name}`: its base image")
            elif not is_locked(spec, home=self._home, glibc=glibc):
                lacking.append(f"`{spec.name}`: a lock")
            elif not self.look(spec).built:
                wanted = [
                    archives.Archive(name=each.name, url=each.url, sha256=each.sha256)
                    for each in read_lock(find_lock(spec, home=self._home, glibc=glibc)).packages
                ]
                lacking += [f"`{spec.name}`: {each.file_name}" for each in archives.missing(wanted, self._home)]
        if lacking:
            names = " ".join(dict.fromkeys(line.split("`")[1] for line in lacking))
            raise BuildError(
                "we are offline, and not everything is here",
                why="\n".join(lacking),
                hint=f"`run-local build {names}` fetches it where there is a network",
            )

    def _side_by_side(self, work: Callable[[Spec, Say], Any], specs: Sequence[Spec]) -> list[Any]:
        def one(spec: Spec, check: Callable[[], None]) -> Any:
            def say(step: str, detail: str, done: float | None = None) -> None:
                check()
                self._progress(spec.name, step, detail, done)

            return work(spec, say)

        return side_by_side(one, specs, min(_MOST_AT_ONCE, max(1, int(machine.cores()))))

    def _say(self, environment: str) -> Say:
        def say(step: str, detail: str, done: float | None = None) -> None:
            self._progress(environment, step, detail, done)

        return say


class _Popularity:
    """How many environments of a project hold a package, by its sha256; counted when it is first asked for."""

    def __init__(self, locks: Sequence[Lock], beside: Callable[[], Sequence[Lock]]) -> None:
        self._locks, self._beside = locks, beside
        self._counting = threading.Lock()
        self._counted: collections.Counter[str] | None = None

    def count(self) -> Mapping[str, int]:
        """The counts."""
        with self._counting:
            if self._counted is None:
                held = ({package.sha256 for package in each.packages} for each in [*self._locks, *self._beside()])
                self._counted = collections.Counter(sha256 for each in held for sha256 in each)
            return self._counted


def specs_by_name(specs: Sequence[Spec]) -> dict[str, Spec]:
    """The same, by name."""
    return {spec.name: spec for spec in specs}


def _key(spec: Spec, locked: Lock, base: Base | None) -> str:
    content = [_RECIPE, locked.digest, base.identity if base else None, dict(spec.variables)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
