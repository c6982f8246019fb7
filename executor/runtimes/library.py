"""The part of run-local that travels: a folder with the agent and what it needs, mounted into every slot.

It holds the few modules of ours that a container needs and cloudpickle, nothing else, so that a task sees none of the
host's packages. The folder is kept by content, so a new version of run-local makes a new one. It is byte-compiled for
the Python that runs us, which environments often share.
"""

from __future__ import annotations

import compileall
import hashlib
import py_compile
from collections.abc import Iterator
from pathlib import Path

import cloudpickle

import executor
from executor.data.leases import scratch_folder, settle
from executor.data.store import full_disk

_MODULES = (
    "__init__.py",
    "api.py",
    "authoring.py",
    "errors.py",
    "files.py",
    "report.py",
    "resources.py",
    "version.py",
)
_MAIN = b"from executor.worker.launch import main\n\nmain()\n"


def worker_library(home: Path) -> Path:
    """The folder to start an agent from: `python -I -S <folder> CONFIG`."""
    contents = dict(_contents())
    digest = hashlib.sha256()
    for name, data in sorted(contents.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    target = home / "library" / digest.hexdigest()[:16]
    if not target.exists():
        with full_disk("run-local's own code cannot be copied"):
            _write(contents, target)
    return target


def _contents() -> Iterator[tuple[str, bytes]]:
    ours = Path(executor.__file__).parent
    yield "__main__.py", _MAIN
    for path in [*(ours / name for name in _MODULES), *(ours / "worker").glob("*.py")]:
        yield f"executor/{path.relative_to(ours)}", path.read_bytes()
    theirs = Path(cloudpickle.__file__).parent
    for path in theirs.glob("*.py"):
        yield f"cloudpickle/{path.name}", path.read_bytes()


def _write(contents: dict[str, bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent) as scratch:
        temporary = scratch / "library"
        for name, data in contents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o644)
        compileall.compile_dir(temporary, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        settle(temporary, target)
