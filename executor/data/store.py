"""Values and files by content: `store/sha256/<2>/<64>`, written once, never changed.

The store moves bytes and never opens a value. What a task left in its folder of outputs is taken only as a regular file
directly in that folder; a link, a pipe or a device there is refused, so a task cannot make the host read anything else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from executor.errors import MachineError, RunLocalError
from executor.worker.protocol import INLINE_BYTES

_OUTPUT_NAME = re.compile(r"^v[0-9]{1,9}$")
_CHUNK = 2**20
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file that belongs to a value: its content and the name it had. `key` names it in inputs made by the host."""

    sha256: str
    size: int
    name: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRef:
    """A committed value: its payload and the files attached to it."""

    sha256: str
    size: int
    type: str = ""
    files: tuple[FileRef, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the record."""
        return asdict(self)


class ValueRefused(RunLocalError):
    """What a task handed over is not a value."""


class Store:
    """The store of one RUN_LOCAL_HOME. Safe for several processes: every write is a rename of a finished file.

    incoming: a folder on the same file system for what is not finished
    """

    def __init__(self, home: Path, incoming: Path) -> None:
        self._root = home / "store" / "sha256"
        self._incoming = incoming
        with full_disk("the store cannot be written"):
            self._root.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the content with this digest lies, or would lie."""
        return self._root / sha256[:2] / sha256

    def put_bytes(self, data: bytes) -> str:
        """Commit bytes; answers with their digest."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.path(digest).exists():
            with full_disk("a value cannot be stored"), self._new() as (file, temporary):
                file.write(data)
                file.close()
                self._commit(temporary, digest)
        return digest

    def put_file(self, source: Path, key: str) -> FileRef:
        """Commit a copy of one of the user's files."""
        with full_disk(f"`{source}` cannot be copied into the store"), self._new() as (file, temporary):
            with source.open("rb") as original:
                shutil.copyfileobj(original, file, _CHUNK)
            file.close()
            digest, size = _digest(temporary)
            self._commit(temporary, digest)
        return FileRef(sha256=digest, size=size, name=source.name, key=key)

    def take(self, place: Mapping[str, Any], body: bytes, outputs: Path, given: Mapping[str, FileRef]) -> ValueRef:
        """Commit the value that a task left at a place on the wire (see `worker.payload`); raises `ValueRefused`.

        outputs: the folder that the task wrote to; given: what it was itself given, by its name in the inputs
        """
        try:
            name, files = place["name"], place["files"]
            sha256, size = (self.put_bytes(body), len(body)) if name is None else self._adopt(outputs, name)
            taken = tuple(self._take_file(each, outputs, given) for each in files)
            return ValueRef(sha256=sha256, size=size, type=str(place.get("type", ""))[:200], files=taken)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueRefused("a task handed over something that is no value", why=repr(exc)) from exc

    def place(self, value: ValueRef, inputs: Path, *, share: bool = True) -> tuple[dict[str, Any], bytes]:
        """Put a value where a task finds it: its place on the wire, and the frame's body. Raises `MachineError`.

        share: the task cannot write to its inputs, so that they may be the store's own files, under another name
        """
        with full_disk("a value cannot be given to a task"):
            return self._place(value, inputs, share=share)

    def _place(self, value: ValueRef, inputs: Path, *, share: bool) -> tuple[dict[str, Any], bytes]:
        place: dict[str, Any] = {"size": value.size, "name": None, "type": value.type, "files": []}
        body = b""
        if value.size <= INLINE_BYTES:
            body = self.path(value.sha256).read_bytes()
        else:
            place["name"] = value.sha256
            self._give(value.sha256, inputs / value.sha256, share=share)
        for number, file in enumerate(value.files):
            at = f"{file.sha256[:16]}-{number}/{file.name}"
            (inputs / at).parent.mkdir(exist_ok=True)
            (inputs / at).parent.chmod(0o755)
            self._give(file.sha256, inputs / at, share=share)
            place["files"].append({"name": file.name, "at": at, "key": file.key})
        return place, body

    def export(self, file: FileRef, folder: Path) -> Path:
        """Copy a file of a value into a folder of the user's, under a name that is still free there."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / file.name
        count = 1
        while target.exists():
            count += 1
            target = folder / f"{Path(file.name).stem}-{count}{Path(file.name).suffix}"
        with full_disk(f"`{target}` cannot be written"):
            shutil.copyfile(self.path(file.sha256), target)
        return target

    # -- inside --------------------------------------------------------------------------------------------------------

    def _take_file(self, each: Mapping[str, str], outputs: Path, given: Mapping[str, FileRef]) -> FileRef:
        name = _plain_name(each["name"])
        if "given" in each:
            original = given.get(each["given"])
            if original is None:
                raise ValueRefused(f"a task handed on `{name}`, which it was not given")
            return FileRef(sha256=original.sha256, size=original.size, name=name)
        sha256, size = self._adopt(outputs, each["at"])
        return FileRef(sha256=sha256, size=size, name=name)

    def _adopt(self, outputs: Path, name: str) -> tuple[str, int]:
        """Make a file of the task's ours, and commit it: its digest and size."""
        if not _OUTPUT_NAME.match(name):
            raise ValueRefused(f"a task named its output `{name[:80]}`, which no output is called")
        with full_disk("a value cannot be stored"), self._new() as (file, temporary):
            file.close()
            _move_out(outputs, name, temporary)
            os.chown(temporary, os.getuid(), os.getgid(), follow_symlinks=False)
            temporary.chmod(0o644)
            digest, size = _digest(temporary)
            self._commit(temporary, digest)
        return digest, size

    @contextlib.contextmanager
    def _new(self) -> Iterator[tuple[Any, Path]]:
        with tempfile.NamedTemporaryFile(dir=self._incoming, prefix="value-", delete=False) as file:
            temporary = Path(file.name)
            try:
                yield file, temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _commit(self, temporary: Path, digest: str) -> None:
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        temporary.chmod(0o444)  # a container reads it as another user, and nobody changes it
        temporary.replace(target)

    def _give(self, sha256: str, target: Path, *, share: bool) -> None:
        if share:
            with contextlib.suppress(FileExistsError):
                os.link(self.path(sha256), target)
            return
        target.unlink(missing_ok=True)  # the task may have changed what it was given before
        shutil.copyfile(self.path(sha256), target)
        target.chmod(0o444)


def _move_out(outputs: Path, name: str, target: Path) -> None:
    """Move a regular file out of a folder that a task writes to, and follow no link that it put there or in its place."""
    try:
        folder = os.open(outputs, os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            kinds = [os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode]
            if stat.S_ISREG(kinds[0]):
                os.rename(name, target, src_dir_fd=folder)
                kinds.append(os.lstat(target).st_mode)  # the task may have put another there meanwhile
        finally:
            os.close(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise ValueRefused(f"the output `{name}` of a task is gone", why=str(exc.strerror)) from exc
    if not all(map(stat.S_ISREG, kinds)):
        raise ValueRefused(f"the output `{name}` of a task is not a regular file")


def _plain_name(name: str) -> str:
    """A file's name as a task gave it, if it is one: nothing that leads out of a folder, or that none can be called."""
    last = Path(name).name.replace("\0", "")
    return last if last not in ("", ".", "..") and len(os.fsencode(last)) <= _LONGEST_NAME else "file"


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        size = 0
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return hasher.hexdigest(), size


@contextlib.contextmanager
def full_disk(doing: str) -> Iterator[None]:
    """Raise what the file system refuses as `MachineError`, saying what we were doing when it did."""
    try:
        yield
    except OSError as exc:
        hint = "make room, or set RUN_LOCAL_HOME to a folder on a larger disk" if exc.errno == errno.ENOSPC else ""
        raise MachineError(doing, why=f"{exc.strerror}: {exc.filename or ''}".rstrip(": "), hint=hint) from exc
