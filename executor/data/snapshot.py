"""The project's source as it was when the run began, so that an edit during the run changes nothing.

Snapshots are kept by content: the same source is copied once. Large data does not belong into the source and is refused
by name.

Each attempt imports the modules of its task anew, and nothing may write into a snapshot; so a source of moderate size is
byte-compiled here, for the Python that runs us, which environments often share.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import py_compile
import shutil
import warnings
from pathlib import Path

from executor.data.leases import scratch_folder, settle
from executor.data.sources import source_files
from executor.data.store import full_disk
from executor.errors import ProjectError

MOST_BYTES = 256 * 2**20

#: As much source takes about half a second to compile, once.
_MOST_COMPILED_BYTES = 512 * 2**10


def take_snapshot(root: Path, home: Path) -> Path:
    """A read-only copy of the project's source under `home/snapshots/<digest>`."""
    files = sorted(path for path in source_files(root, home) if path.is_file())
    _refuse_large(root, files)
    digest = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(os.fsencode(path.relative_to(root)) + b"\0" + content)
    target = home / "snapshots" / digest.hexdigest()[:32]
    if not target.exists():
        with full_disk("the source of the workflow cannot be copied"):
            _copy(root, files, target)
    return target


def _refuse_large(root: Path, files: list[Path]) -> None:
    sizes = {path: path.stat().st_size for path in files}
    if sum(sizes.values()) <= MOST_BYTES:
        return
    largest = sorted(files, key=lambda path: -sizes[path])[:5]
    raise ProjectError(
        f"the source of the project holds {sum(sizes.values()) / 2**20:.0f} MiB, more than {MOST_BYTES // 2**20} MiB",
        why="the largest: "
        + ", ".join(f"{path.relative_to(root)} ({sizes[path] / 2**20:.0f} MiB)" for path in largest),
        hint=f"move data out of `{root}`, or into a hidden folder, and pass it to the workflow as a path",
    )


def _copy(root: Path, files: list[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent) as scratch:
        temporary = scratch / "source"
        temporary.mkdir()
        for path in files:
            copy = temporary / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        _compile([temporary / path.relative_to(root) for path in files if path.suffix == ".py"])
        for folder, _, _ in os.walk(temporary):
            Path(folder).chmod(0o755)
        settle(temporary, target)


def _compile(sources: list[Path]) -> None:
    """Byte-compile copies; one that Python cannot read has no bytecode, and is told of where it is imported."""
    if sum(path.stat().st_size for path in sources) > _MOST_COMPILED_BYTES:
        return
    for path in sources:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        with warnings.catch_warnings(), contextlib.suppress(py_compile.PyCompileError, OSError, ValueError):
            warnings.simplefilter("ignore")  # about escapes in the user's strings, for example
            made = py_compile.compile(str(path), doraise=True, invalidation_mode=mode, quiet=2)
            Path(str(made)).chmod(0o644)
