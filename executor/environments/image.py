"""A lock as a Docker image: the base, and one layer with the environment at `/opt/env`.

The image is what its label `run-local.key` says; building it again from the same lock gives the same id.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executor import dockerd, machine
from executor.data.store import full_disk
from executor.environments import archive
from executor.environments.base import Base
from executor.environments.lock import Lock
from executor.environments.prefix import installed
from executor.environments.spec import Spec
from executor.errors import BuildError, MachineError

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
    spec: Spec, lock: Lock, base: Base, key: str, client: Any, *, home: Path, say: Callable[[str, str], None]
) -> str:
    """The id of the image of a lock, built now where the engine has none."""
    with machine.lock_file(home / "images" / f"{key}.lock", lambda: say("install", "another run-local builds it")):
        found = find_image(client, spec.name, key)
        if found:
            return found
        with installed(lock, PREFIX, home=home, say=say) as folder:
            _load(spec, base, key, folder, client, say)
    made = find_image(client, spec.name, key)
    if made is None:
        raise BuildError(f"the image of `{spec.name}` was loaded and is not there", hint="does the engine have room?")
    say("verify", "starting its Python")
    _verify(spec, lock, key, made, client)
    return made


def _load(spec: Spec, base: Base, key: str, folder: Path, client: Any, say: Callable[[str, str], None]) -> None:
    with full_disk("an image cannot be packed"), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        say("pack", "one layer")
        own = archive.pack_layer(folder, PREFIX, Path(scratch) / "layer.tar")
        layers = [*(archive.Layer(digest=digest, file=None) for digest in base.layers), own]
        path = f"{PREFIX}/bin:{base.variables.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
        variables = {**base.variables, "PATH": path, "CONDA_PREFIX": PREFIX, **spec.variables}
        labels = {dockerd.LABEL: "environment", _KEY: key, f"{dockerd.LABEL}.environment": spec.name}
        config = archive.image_config(layers, variables=variables, labels=labels)
        tag = image_tag(spec.name, key)
        size = own.file.stat().st_size if own.file else 0
        say("load", f"{size / 2**20:.0f} MiB")
        try:
            dockerd.load(client, archive.archive(config, tag, layers))
        except MachineError as exc:
            if isinstance(exc.__cause__, dockerd.NOT_CONNECTED):
                raise
            say("load", f"the engine wants the layers of the base, too ({exc.why})")
            saved = Path(scratch) / "base.tar"
            dockerd.save(client, base.reference, saved)
            dockerd.load(client, archive.archive(config, tag, [*archive.unpack_layers(saved, Path(scratch)), own]))


def _verify(spec: Spec, lock: Lock, key: str, image: str, client: Any) -> None:
    """Start the Python of an image; one that does not start is removed again."""
    code = "import sys; print(sys.version.split()[0])"
    said = dockerd.output_of(client, image, [f"{PREFIX}/bin/python", "-I", "-c", code]).strip()
    if said != lock.python:
        with dockerd.translated("an image cannot be removed"):
            client.api.remove_image(image_tag(spec.name, key), force=True)
        raise BuildError(
            f"the Python of `{spec.name}` does not start",
            why=f"the lock has {lock.python}, the image says: {said[-500:]}",
        )
