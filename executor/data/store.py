"""Values and files by content: `store/sha256/<2>/<64>`, written once, never changed.

The store moves bytes and never opens a value. What a task left in its folder of outputs is taken only as a regular file
directly in that folder; a link, a pipe or a device there is refused, so a task cannot make the host read anything else.
Memory that a task sends is taken only where it is sealed.

A value is of use before it is stored: `receive` makes what a task handed over ours, `place` gives it to the next task,
and `commit`, which reads all of it, may run beside that on another thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import mmap
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from executor.errors import MachineError, RunLocalError
from executor.worker.memory import is_sealed
from executor.worker.payload import is_within, would_fit
from executor.worker.protocol import INLINE_BYTES, MOST_FDS, close_all

_OUTPUT_NAME = re.compile(r"^v[0-9]{1,9}$")
_CHUNK = 2**20
_LONGEST_NAME = 200
_LONGEST_OF_ALL = 255  # Linux
_LONGEST_PATH = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One entry of a folder. kind: file, dir or link; link: what a link says, relative."""

    path: str
    kind: str
    sha256: str = ""
    size: int = 0
    executable: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file or folder that belongs to a value: its content and the name it had.

    name: empty for a blob in which large buffers of the value lie; key: names it in inputs made by the host
    tree: the entries of a folder, which has no content of its own
    """

    sha256: str
    size: int
    name: str
    key: str = ""
    tree: tuple[TreeEntry, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRef:
    """A committed value: its payload and what is attached to it.

    environment: where it was made; texts: what whoever cannot open it is told of what is in it (see `worker.preview`)
    """

    sha256: str
    size: int
    type: str = ""
    environment: str = ""
    files: tuple[FileRef, ...] = ()
    texts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the record."""
        return asdict(self)


def read_value(doc: Mapping[str, Any]) -> ValueRef:
    """The value that a record speaks of."""
    files = []
    for each in doc["files"]:
        tree = each.get("tree")
        files.append(FileRef(**{**each, "tree": None if tree is None else tuple(TreeEntry(**entry) for entry in tree)}))
    return ValueRef(**{**doc, "files": tuple(files)})


def open_value(store: Store, ref: ValueRef) -> Value:
    """A committed value, to be given to a task; one that is not in the store raises `OSError`."""

    def blob(sha256: str) -> Blob:
        return Blob(path=store.path(sha256), sha256=sha256)

    def content(file: FileRef) -> Blob | Tree:
        if file.tree is None:
            return blob(file.sha256)
        return Tree((entry, blob(entry.sha256) if entry.kind == "file" else None) for entry in file.tree)

    payload = blob(ref.sha256)
    if ref.size <= INLINE_BYTES:
        payload = Blob(data=store.path(ref.sha256).read_bytes(), sha256=ref.sha256)
    files = [Attachment(name=each.name, content=content(each), key=each.key) for each in ref.files]
    return Value(payload, files, type=ref.type, environment=ref.environment, texts=ref.texts)


class ValueRefused(RunLocalError):
    """What a task handed over is not a value."""


class Blob:
    """Content on its way into the store: bytes, sealed memory, or a file of ours. It can be read at once."""

    def __init__(
        self, *, data: bytes | None = None, fd: int | None = None, path: Path | None = None, sha256: str = ""
    ) -> None:
        self.sha256 = sha256
        self._data, self._fd, self._path = data, fd, path
        self._lock = threading.Lock()  # of where it lies
        self._committing = threading.Lock()
        if data is not None:
            self.size = len(data)
        elif fd is not None:
            self.size = os.fstat(fd).st_size
        else:
            assert path is not None
            self.size = path.stat().st_size

    @property
    def data(self) -> bytes | None:
        """All of it, where that is held in our memory."""
        return self._data

    def share(self) -> int | None:
        """An open file of sealed memory, to be closed by whoever asked; None where it is none."""
        with self._lock:
            return None if self._fd is None else os.dup(self._fd)

    def link(self, target: Path, *, copy: bool) -> None:
        """Give a file another name: read-only content that nobody can change, or else a copy of it."""
        with self._lock:
            assert self._path is not None
            if not copy:
                with contextlib.suppress(FileExistsError):
                    os.link(self._path, target)
                return
            target.unlink(missing_ok=True)  # the task may have changed what it was given before
            shutil.copyfile(self._path, target)
            target.chmod(0o444)

    def commit(self, store: Store) -> None:
        """Put it into the store; twice is fine. Blocks while all of it is read."""
        with self._committing:
            if self.sha256:
                return
            if self._data is not None:
                self.sha256 = store.put_bytes(self._data)
            elif self._fd is not None:
                digest = _digest_of_memory(self._fd, self.size)
                store.put_memory(self._fd, self.size, digest)
                self._settle(store, digest)
            else:
                assert self._path is not None
                with full_disk("a value cannot be stored"):
                    self._settle(store, _digest(self._path))

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def _settle(self, store: Store, digest: str) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            elif self._path is not None:
                store.adopt(self._path, digest)
            self._fd, self._path, self.sha256 = None, store.path(digest), digest


class Tree:
    """A folder on its way into the store: its entries, those that are files with their blobs."""

    def __init__(self, entries: Iterable[tuple[TreeEntry, Blob | None]]) -> None:
        self.entries = list(entries)

    def below(self, folder: str) -> Tree | Blob | None:
        """What lies at a path in it."""
        inside = []
        for entry, blob in self.entries:
            if entry.path == folder and entry.kind == "file":
                return blob
            if entry.path.startswith(folder + os.sep):
                inside.append((replace_path(entry, entry.path[len(folder) + 1 :]), blob))
        is_there = any(entry.path == folder and entry.kind == "dir" for entry, _ in self.entries)
        return Tree(inside) if inside or is_there else None


def replace_path(entry: TreeEntry, path: str) -> TreeEntry:
    """The same entry elsewhere."""
    return TreeEntry(**{**asdict(entry), "path": path})


@dataclass(slots=True, kw_only=True)
class Attachment:
    """A file or folder of a value; `name` is empty for a blob of its buffers."""

    name: str
    content: Blob | Tree
    key: str = ""


class Value:
    """A value between tasks: received, of use, and committed once `commit` has returned."""

    def __init__(
        self,
        payload: Blob,
        files: Sequence[Attachment],
        *,
        type: str = "",
        environment: str = "",
        texts: Mapping[str, Any] | None = None,
    ) -> None:
        self.payload, self.files = payload, list(files)
        self.type, self.environment, self.texts = type, environment, dict(texts or {})

    @property
    def is_small(self) -> bool:
        """Whether it can be committed in no time."""
        return self.payload.data is not None and not self.files

    def commit(self, store: Store) -> ValueRef:
        """Put all of it into the store. Blocks; raises `MachineError` where there is no room."""
        for blob in self.blobs():
            blob.commit(store)
        files = tuple(_reference(each) for each in self.files)
        return ValueRef(
            sha256=self.payload.sha256,
            size=self.payload.size,
            type=self.type,
            environment=self.environment,
            files=files,
            texts=self.texts,
        )

    def blobs(self) -> Iterator[Blob]:
        """All content that is in it."""
        yield self.payload
        for each in self.files:
            if isinstance(each.content, Blob):
                yield each.content
            else:
                yield from (blob for _, blob in each.content.entries if blob)


def _reference(each: Attachment) -> FileRef:
    if isinstance(each.content, Blob):
        return FileRef(sha256=each.content.sha256, size=each.content.size, name=each.name, key=each.key)
    entries = []
    for entry, blob in each.content.entries:
        facts = {**asdict(entry), "sha256": blob.sha256, "size": blob.size} if blob else asdict(entry)
        entries.append(TreeEntry(**facts))
    size = sum(entry.size for entry in entries)
    return FileRef(sha256="", size=size, name=each.name, key=each.key, tree=tuple(entries))


#: What an attempt was given, by its name in the inputs.
Given = dict[str, "Blob | Tree"]


class Store:
    """The store of one RUN_LOCAL_HOME. Safe for several processes: every write is a rename of a finished file.

    incoming: a folder on the same file system for what is not finished
    """

    def __init__(self, home: Path, incoming: Path) -> None:
        self._root = home / "store" / "sha256"
        self._incoming = incoming
        self._numbers = itertools.count(1)
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
                self.adopt(temporary, digest)
        return digest

    def put_memory(self, fd: int, size: int, digest: str) -> None:
        """Commit the content of sealed memory, of which the digest is known."""
        if self.path(digest).exists():
            return
        with full_disk("a value cannot be stored"), self._new() as (file, temporary):
            at = 0
            while at < size:
                at += os.sendfile(file.fileno(), fd, at, size - at)
            file.close()
            self.adopt(temporary, digest)

    def put_file(self, source: Path, key: str) -> Attachment:
        """Take a copy of one of the user's files, or of a folder; a link that leads out of that is refused."""
        if source.is_dir():
            return Attachment(name=source.resolve().name, content=Tree(self._copy_tree(source)), key=key)
        return Attachment(name=source.name, content=self._copy(source), key=key)

    def receive(
        self,
        place: Mapping[str, Any],
        body: bytes,
        fds: list[int],
        outputs: Path,
        given: Mapping[str, Blob | Tree],
        *,
        copy: bool = False,
    ) -> Value:
        """Make the value that a task left at a place on the wire (see `worker.payload`) ours; raises `ValueRefused`.

        outputs: the folder that the task wrote to; given: what it was itself given, by its name in the inputs
        copy:    the task still runs, and may hold its files open
        """
        take = _Taking(self, outputs, copy)
        try:
            payload = self._receive_payload(place, body, fds, take)
            files = [self._receive_file(each, take, given) for each in place["files"]]
            texts = {str(at): (str(told[0]), str(told[1])) for at, told in dict(place.get("texts", {})).items()}
            return Value(
                payload,
                files,
                type=str(place.get("type", ""))[:200],
                environment=str(place.get("environment", ""))[:200],
                texts=texts,
            )
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as exc:
            raise ValueRefused("a task handed over something that is no value", why=repr(exc)) from exc
        finally:
            close_all(fds)

    def place(
        self, value: Value, inputs: Path, given: Given, *, share: bool = True
    ) -> tuple[dict[str, Any], bytes, list[int]]:
        """Put a value where a task finds it: its place on the wire, the frame's body and open files to go with it.

        given: takes note of what is given under which name; share: the task cannot write to its inputs, so that they
        may be the store's own files, under another name. Raises `MachineError`.
        """
        with full_disk("a value cannot be given to a task"):
            return self._place(value, inputs, given, share=share)

    def _place(
        self, value: Value, inputs: Path, given: Given, *, share: bool
    ) -> tuple[dict[str, Any], bytes, list[int]]:
        fds: list[int] = []
        place: dict[str, Any] = {"size": value.payload.size, "at": None, "type": value.type, "files": []}
        place.update(environment=value.environment, texts=value.texts)
        body = value.payload.data or b""
        if value.payload.data is None:
            place.update(self._give(value.payload, "", inputs, given, fds, share=share))
        for each in value.files:
            if isinstance(each.content, Blob):
                at = self._give(each.content, each.name, inputs, given, fds, share=share)
            else:
                at = self._give_tree(each.content, each.name, inputs, given, share=share)
            place["files"].append({"name": each.name, "key": each.key, **at})
        return place, body, fds

    def export(self, file: FileRef, folder: Path) -> Path:
        """Copy a file or folder of a value into a folder of the user's, under a name that is still free there."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / file.name
        count = 1
        while target.exists():
            count += 1
            target = folder / f"{Path(file.name).stem}-{count}{Path(file.name).suffix}"
        with full_disk(f"`{target}` cannot be written"):
            if file.tree is None:
                self._export_file(file.sha256, target)
            else:
                self._export_tree(file.tree, target)
        return target

    def adopt(self, temporary: Path, digest: str) -> None:
        """Commit a finished file of ours."""
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        temporary.chmod(0o444)  # a container reads it as another user, and nobody changes it
        temporary.replace(target)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _receive_payload(self, place: Mapping[str, Any], body: bytes, fds: list[int], take: _Taking) -> Blob:
        if "fd" in place:
            fd = fds[place["fd"]]
            if not stat.S_ISREG(os.fstat(fd).st_mode) or not is_sealed(fd):
                raise ValueRefused("a task handed over memory that it can still change")
            return Blob(fd=os.dup(fd))
        return Blob(data=body) if place["at"] is None else take(place["at"])

    def _receive_file(self, each: Mapping[str, Any], take: _Taking, given: Mapping[str, Blob | Tree]) -> Attachment:
        name = _plain_name(each["name"]) if each["name"] else ""
        if "given" in each:
            return Attachment(name=name, content=_given(str(each["given"]), given))
        if "tree" in each:
            return Attachment(name=name, content=self._receive_tree(each["tree"], take))
        return Attachment(name=name, content=take(each["at"]))

    def _receive_tree(self, told: Sequence[Sequence[Any]], take: _Taking) -> Tree:
        entries: list[tuple[TreeEntry, Blob | None]] = []
        folders = {""}
        for path, kind, *rest in told:
            parent, name = os.path.split(path)
            if parent not in folders or not _is_name(name) or len(os.fsencode(path)) > _LONGEST_PATH:
                raise ValueRefused(f"a task handed over a folder with `{path[:200]}` in it, which is no path there")
            if kind == "dir":
                folders.add(path)
                entries.append((TreeEntry(path=path, kind="dir"), None))
            elif kind == "link":
                if not rest[0] or "\0" in rest[0] or not is_within(parent, rest[0]):
                    raise ValueRefused(f"a task handed over a folder with a link that leads out of it: `{path[:200]}`")
                entries.append((TreeEntry(path=path, kind="link", link=rest[0]), None))
            else:
                entry = TreeEntry(path=path, kind="file", executable=bool(rest[1]))
                entries.append((entry, take(rest[0])))
        if len({entry.path for entry, _ in entries}) != len(entries):
            raise ValueRefused("a task handed over a folder in which two things have one name")
        return Tree(entries)

    def new_path(self) -> Path:
        """A path for what is not committed yet."""
        return self._incoming / f"taken-{next(self._numbers)}"

    def _copy(self, source: Path) -> Blob:
        temporary = self.new_path()
        with full_disk(f"`{source}` cannot be copied into the store"):
            shutil.copyfile(source, temporary)
            temporary.chmod(0o444)
        return Blob(path=temporary)

    def _copy_tree(self, source: Path) -> Iterator[tuple[TreeEntry, Blob | None]]:
        for folder, names, files in os.walk(source):
            inside = Path(folder).relative_to(source)
            for name in sorted([*names, *files]):
                path = Path(folder, name)
                at = str(inside / name)
                if path.is_symlink():
                    target = str(path.readlink())
                    if not is_within(str(inside), target):
                        raise RunLocalError(
                            f"the folder `{source}` cannot be given to a task",
                            why=f"the link `{at}` in it leads out of it, to `{target}`",
                            hint="put a copy in its place; large data that is there already can be mounted: `Mount`",
                        )
                    yield TreeEntry(path=at, kind="link", link=target), None
                elif path.is_dir():
                    yield TreeEntry(path=at, kind="dir"), None
                elif path.is_file():
                    yield TreeEntry(path=at, kind="file", executable=os.access(path, os.X_OK)), self._copy(path)
            names[:] = sorted(name for name in names if not Path(folder, name).is_symlink())

    def _give(
        self, blob: Blob, name: str, inputs: Path, given: Given, fds: list[int], *, share: bool
    ) -> dict[str, Any]:
        """Put a blob into the inputs, or an open file of it into `fds`."""
        at = f"b{next(self._numbers)}"
        if len(fds) == MOST_FDS:
            blob.commit(self)
        fd = None if name else blob.share()
        if fd is not None:
            given[at] = blob
            fds.append(fd)
            return {"at": at, "fd": len(fds) - 1}
        if name:
            _make_folder(inputs / at)
            at = f"{at}/{name}"
        given[at] = blob
        blob.link(inputs / at, copy=not share)
        return {"at": at}

    def _give_tree(self, tree: Tree, name: str, inputs: Path, given: Given, *, share: bool) -> dict[str, Any]:
        at = f"b{next(self._numbers)}/{name}"
        _make_folder((inputs / at).parent)
        _make_folder(inputs / at)
        given[at] = tree
        for entry, blob in tree.entries:
            path = inputs / at / entry.path
            if entry.kind == "dir":
                _make_folder(path)
            elif entry.kind == "link":
                path.symlink_to(entry.link)
            elif blob:
                blob.link(path, copy=not share or entry.executable)
                if entry.executable:
                    path.chmod(0o555)
        return {"at": at}

    def _export_file(self, sha256: str, target: Path, *, executable: bool = False) -> None:
        """Copy content to where the user looks, under its name only once it is whole."""
        unfinished = Path(tempfile.mktemp(dir=target.parent, prefix=".part-"))  # noqa: S306  nobody else writes here
        shutil.copyfile(self.path(sha256), unfinished)
        if executable:
            unfinished.chmod(unfinished.stat().st_mode | 0o111)
        unfinished.replace(target)

    def _export_tree(self, tree: Sequence[TreeEntry], target: Path) -> None:
        unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
        unfinished.chmod(0o755)
        for entry in tree:
            path = unfinished / entry.path
            if entry.kind == "dir":
                path.mkdir()
            elif entry.kind == "link":
                path.symlink_to(entry.link)
            else:
                self._export_file(entry.sha256, path, executable=entry.executable)
        unfinished.replace(target)

    @contextlib.contextmanager
    def _new(self) -> Iterator[tuple[Any, Path]]:
        with tempfile.NamedTemporaryFile(dir=self._incoming, prefix="value-", delete=False) as file:
            temporary = Path(file.name)
            try:
                yield file, temporary
            finally:
                temporary.unlink(missing_ok=True)


class _Taking:
    """Takes files out of the folder that a task writes to."""

    def __init__(self, store: Store, outputs: Path, copy: bool) -> None:
        self._store, self._outputs, self._copy = store, outputs, copy

    def __call__(self, name: str) -> Blob:
        """Make a file of the task's ours."""
        if not _OUTPUT_NAME.match(name):
            raise ValueRefused(f"a task named its output `{name[:80]}`, which no output is called")
        temporary = self._store.new_path()
        with full_disk("a value cannot be stored"):
            _move_out(self._outputs, name, temporary)
            if not would_fit(str(temporary), str(temporary.parent)):
                temporary.unlink()
                raise ValueRefused(f"the output `{name}` of a task is larger than the disk")
            if self._copy:  # whoever has the file open writes to another one from now on
                copied = self._store.new_path()
                shutil.copyfile(temporary, copied)
                copied.replace(temporary)
            else:
                os.chown(temporary, os.getuid(), os.getgid(), follow_symlinks=False)
            temporary.chmod(0o444)
        return Blob(path=temporary)


def _given(name: str, given: Mapping[str, Blob | Tree]) -> Blob | Tree:
    """What a task was given under a name, or something in a folder that it was given."""
    found: Blob | Tree | None = given.get(name)
    top = name
    while found is None and "/" in top:
        top, _, _ = top.rpartition("/")
        tree = given.get(top)
        if isinstance(tree, Tree):
            found = tree.below(name[len(top) + 1 :])
    if found is None:
        raise ValueRefused(f"a task handed on `{name[:200]}`, which it was not given")
    return found


def _make_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


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


def _is_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
        and len(os.fsencode(name)) <= _LONGEST_OF_ALL
    )


def _plain_name(name: str) -> str:
    """A file's name as a task gave it, if it is one: nothing that leads out of a folder, or that none can be called."""
    last = Path(name).name.replace("\0", "")
    return last if last not in ("", ".", "..") and len(os.fsencode(last)) <= _LONGEST_NAME else "file"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _digest_of_memory(fd: int, size: int) -> str:
    if not size:
        return hashlib.sha256().hexdigest()
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapped:
        return hashlib.sha256(mapped).hexdigest()


@contextlib.contextmanager
def full_disk(doing: str) -> Iterator[None]:
    """Raise what the file system refuses as `MachineError`, saying what we were doing when it did."""
    try:
        yield
    except OSError as exc:
        hint = "make room, or set RUN_LOCAL_HOME to a folder on a larger disk" if exc.errno == errno.ENOSPC else ""
        raise MachineError(doing, why=f"{exc.strerror}: {exc.filename or ''}".rstrip(": "), hint=hint) from exc
