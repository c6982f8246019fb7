"""Environments: from what a user wrote to something that a task can run in.

    spec → lock → prefix                for the process runtime
                → image (on a base)     for Docker

`build` is the way through all of it; each step is kept by content, so a second call finds everything made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from executor import dockerd, machine
from executor.environments import image, prefix
from executor.environments.base import Base, find_base
from executor.environments.lock import Lock, find_lock, lock, read_lock
from executor.environments.spec import Spec, find_spec, read_spec, spec_names
from executor.manifest import Manifest

__all__ = ["Builder", "Built", "Lock", "Progress", "Spec", "State", "find_spec", "read_spec", "spec_names"]

_RECIPE = 2


@dataclass(frozen=True, kw_only=True)
class Built:
    """An environment that a task can run in: `image` for Docker, `prefix` for the process runtime.

    key: the same for the same packages, base and variables, on any machine
    """

    name: str
    key: str
    python: str
    image: str | None
    prefix: Path | None
    lock: Path


class Progress(Protocol):
    """Hears the steps of making an environment: lock, base, install, pack, load, verify, ready."""

    def __call__(self, environment: str, step: str, detail: str) -> None:
        """`detail` is one line for people."""
        ...


@dataclass(frozen=True, kw_only=True)
class State:
    """How far an environment has come; `key` and `python` are known once it is locked."""

    spec: Spec
    lock: Path | None
    key: str
    python: str
    packages: int
    built: bool


class Builder:
    """Makes environments for one runtime; with Docker it holds a connection to the engine."""

    def __init__(self, runtime: str, home: Path, progress: Progress) -> None:
        self._home, self._progress = home, progress
        self._client: Any = dockerd.connect() if runtime == "docker" else None

    def close(self) -> None:
        """Close the connection to the engine."""
        if self._client:
            self._client.close()

    def build(self, manifest: Manifest, environment: str) -> Built:
        """Lock and build a declared environment, or find it built. Raises `EnvironmentFailed` or `MachineError`."""
        return self.build_spec(find_spec(manifest, environment))

    def build_spec(self, spec: Spec) -> Built:
        """The same for a specification."""
        environment = spec.name
        base, locked = self.lock(spec)
        key = _key(spec, locked, base)
        made_image, made_prefix = None, None
        if base:
            made_image = image.find_image(self._client, environment, key) or image.make_image(
                spec, locked, base, key, self._client, home=self._home, say=self._say(environment)
            )
        else:
            made_prefix = prefix.make_prefix(locked, key, home=self._home, say=self._say(environment))
        self._progress(environment, "ready", "")
        return Built(
            name=environment, key=key, python=locked.python, image=made_image, prefix=made_prefix, lock=locked.path
        )

    def lock(self, spec: Spec, path: Path | None = None) -> tuple[Base | None, Lock]:
        """The lock of a specification, and the base that it was made for; made anew at `path` where one is given."""
        say = self._say(spec.name)
        base = find_base(spec.base, self._client, home=self._home, say=say) if self._client else None
        glibc = base.glibc if base else machine.glibc_version()
        return base, lock(spec, home=self._home, glibc=glibc, say=lambda text: say("lock", text), path=path)

    def look(self, spec: Spec) -> State:
        """How far an environment has come, without making anything; a base that is not there counts as this machine's."""
        base = None
        if self._client:
            base = find_base(spec.base, self._client, home=self._home, say=self._say(spec.name), make=False)
        found = find_lock(spec, home=self._home, glibc=base.glibc if base else machine.glibc_version())
        if not found.exists():
            return State(spec=spec, lock=None, key="", python="", packages=0, built=False)
        locked = read_lock(found)
        key = _key(spec, locked, base)
        if self._client:
            built = bool(base) and image.find_image(self._client, spec.name, key) is not None
        else:
            built = prefix.prefix_path(key, self._home).exists()
        return State(spec=spec, lock=found, key=key, python=locked.python, packages=len(locked.packages), built=built)

    def _say(self, environment: str) -> Callable[[str, str], None]:
        return lambda step, detail: self._progress(environment, step, detail)


def _key(spec: Spec, locked: Lock, base: Base | None) -> str:
    content = [_RECIPE, locked.digest, base.identity if base else None, dict(spec.variables)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
