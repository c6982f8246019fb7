"""A lock as a Docker image: the base, and layers with the environment at `/opt/env`, one per package.

The image is what its label `run-local.key` says; building it again from the same lock, beside the same other locks, gives
the same id. No installer is in it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from executor import dockerd, machine
from executor.data.leases import scratch_folder
from executor.data.store import full_disk
from executor.environments import archive, layers, verify
from executor.environments.archive import Layer
from executor.environments.base import Base
from executor.environments.lock import Lock
from executor.environments.prefix import installed
from executor.environments.progress import Say
from executor.environments.sending import send
from executor.environments.spec import Spec
from executor.errors import BuildError

PREFIX = "/opt/env"
_KEY = f"{dockerd.LABEL}.key"


def image_tag(environment: str, key: str) -> str:
    """The tag of an environment's image."""
    return f"run-local/{environment}:{key[:12]}"


def find_image(client: Any, environment: str, key: str) -> str | None:
    """The id of the image with this key, if the engine has it."""
    with dockerd.translated("the images cannot be listed"):
        found = client.api.images(name=image_tag(environment, key), filters={"label": f"{_KEY}={key}"})
    return str(found[0]["Id"]) if found else None


def make_image(
    spec: Spec,
    lock: Lock,
    base: Base,
    key: str,
    client: Any,
    *,
    home: Path,
    popularity: Callable[[], Mapping[str, int]],
    say: Say,
) -> str:
    """The id of the image of a lock, built now where the engine has none.

    popularity: tells how many environments of the project hold a package, by its sha256
    """
    with machine.lock_file(home / "images" / f"{key}.lock", lambda: say("install", "another run-local builds it")):
        found = find_image(client, spec.name, key)
        if found:
            return found
        with full_disk("an image cannot be built"):
            own = _layers(lock, popularity(), layers.MOST_LAYERS - len(base.layers), home, say)
            _load(spec, base, key, own, client, home, say)
    made = find_image(client, spec.name, key)
    if made is None:
        raise BuildError(f"the image of `{spec.name}` was loaded and is not there", hint="does the engine have room?")
    say("verify", "starting its Python")
    said = dockerd.output_of(client, made, [f"{PREFIX}/bin/python", *verify.arguments(spec, lock)])
    if not verify.passed(said):
        with dockerd.translated("an image cannot be removed"):
            client.api.remove_image(image_tag(spec.name, key), force=True)
        raise verify.failure(spec, said)
    return made


def part_keys(lock: Lock) -> dict[str, str]:
    """The key of the part that each package of a lock is, by its sha256."""
    return {package.sha256: layers.part_key(asdict(package), lock.python, PREFIX) for package in lock.packages}


def _layers(lock: Lock, popularity: Mapping[str, int], room: int, home: Path, say: Say) -> list[Layer]:
    """The layers of a lock; packages that were no part of any image yet are installed and packed now."""
    keys = part_keys(lock)
    with contextlib.ExitStack() as held:
        for key in sorted(key for key in keys.values() if not layers.find_part(key, home)):
            waits = functools.partial(say, "pack", "waits for another environment that packs the same")
            held.enter_context(machine.lock_file(home / "layers" / f"{key}.lock", waits))
        lacking = {sha256: key for sha256, key in keys.items() if not layers.find_part(key, home)}
        if lacking:
            held.enter_context(installed(lock, PREFIX, home=home, say=say, parts=lacking))
    parts = {sha256: part for sha256, key in keys.items() if (part := layers.find_part(key, home))}
    if gone := keys.keys() - parts.keys():
        raise BuildError("packages were packed and are not there", why=", ".join(sorted(gone)))
    first = next(package.sha256 for package in lock.packages if package.name == "python")
    groups = layers.arrange(parts, first, popularity, room)
    return [layers.layer([parts[sha256] for sha256 in group]) for group in groups]


def _load(spec: Spec, base: Base, key: str, own: Sequence[Layer], client: Any, home: Path, say: Say) -> None:
    """Send the engine an image, with the layers that it lacks; with all of them where it wants that."""
    every = [*(Layer(digest=digest) for digest in base.layers), *own]
    path = f"{PREFIX}/bin:{base.variables.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
    variables = {**base.variables, "PATH": path, "CONDA_PREFIX": PREFIX, **spec.variables}
    labels = {dockerd.LABEL: "environment", _KEY: key, f"{dockerd.LABEL}.environment": spec.name}
    config = archive.image_config(every, variables=variables, labels=labels)
    with scratch_folder(home / "tmp") as scratch:
        send(client, config, image_tag(spec.name, key), every, below=base.reference, scratch=scratch, say=say)
