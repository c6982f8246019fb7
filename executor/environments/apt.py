"""Debian packages in a base image: installed in a container of it, and kept as one layer of what that changed.

The layer holds no times, lists or caches, so the same packages give the same layer. Which versions they are, the
distribution decides on the day; that is why they are part of the base, and not of the lock.
"""

from __future__ import annotations

import shlex
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor import dockerd
from executor.environments import archive
from executor.errors import BuildError

RECIPE = 1

_PASSED = "run-local: installed"
_LEFT_OUT = (
    "var/lib/apt/lists",
    "var/cache",
    "var/log",
    "var/lib/dpkg/lock",
    "tmp",
    "run",
    "proc",
    "sys",
    "dev",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/ld.so.cache.old",
    ".dockerenv",
)


def install(client: Any, base: str, packages: Sequence[str], target: Path) -> archive.Layer:
    """The layer that has these packages beyond those of the image `base`, written to a file."""
    script = " && ".join(
        [
            "export DEBIAN_FRONTEND=noninteractive",
            "apt-get update -q",
            f"apt-get install -q -y --no-install-recommends {shlex.join(packages)}",
            f"echo {shlex.quote(_PASSED)}",
        ]
    )
    with dockerd.container(client, base, ["sh", "-c", script], network="host") as made:
        said = made.wait()
        if not said.rstrip().endswith(_PASSED):
            raise BuildError(
                f"apt cannot install {', '.join(packages)}",
                why=said.strip()[-1000:],
                hint="`apt:` names packages of the base's distribution, which needs to reach its package server",
            )
        with tempfile.TemporaryFile(dir=target.parent) as whole:
            made.export(whole)
            whole.seek(0)
            _write_layer(whole, made.changes(), target)
    return archive.file_layer(target)


def _write_layer(whole: Any, changes: dict[str, bool], target: Path) -> None:
    """What was added or changed of a root file system, and marks for what was removed.

    changes: path without its first `/` → whether it is still there
    """
    wanted = {path: there for path, there in changes.items() if not path.startswith(_LEFT_OUT)}
    members: dict[str, tuple[tarfile.TarInfo, int]] = {}
    with tarfile.open(fileobj=whole, mode="r:") as source, target.open("wb") as file:
        for info in source:
            if wanted.get(info.name.rstrip("/")):
                members[info.name.rstrip("/")] = (info, info.offset_data)
        for path in sorted(wanted):
            if not wanted[path]:
                folder, _, name = path.rpartition("/")
                file.write(tarfile.TarInfo(f"{folder}/.wh.{name}".lstrip("/")).tobuf(tarfile.GNU_FORMAT))
            elif path in members:
                info, offset = members[path]
                info.mtime, info.uname, info.gname, info.pax_headers = 0, "", "", {}
                file.write(info.tobuf(tarfile.GNU_FORMAT))
                whole.seek(offset)
                left = info.size if info.isreg() else 0
                while left:
                    chunk = whole.read(min(left, 2**20))
                    file.write(chunk)
                    left -= len(chunk)
                file.write(bytes(-(info.size if info.isreg() else 0) % 512))
        file.write(archive.END)
