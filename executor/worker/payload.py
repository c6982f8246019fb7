"""Values as bytes: cloudpickle protocol 5, large buffers out of band, files and folders by content.

A payload describes itself:

    b"RLV1" | length of the head (u32) | head (JSON) | padding | pickle | padding | buffer | padding | buffer …

so a consumer maps it and its arrays lie in the map: nothing is copied, and because the map is private, an array arrives
writable without anybody else seeing what is written. A payload made by the host of JSON given on the command line has
`"codec": "json"`; the host never makes or opens a pickle.

A small payload travels in its frame. A large one is sealed memory whose open file travels with the frame, or a file where
there is no room for that (see `memory`). A buffer that lies, unchanged, in what this process was itself given is not
written again: the head says in which blob it lies, and the blob is passed on by its name.

A `pathlib.Path` to a file or folder in the attempt's own folders means nothing in another container, so its content
travels: it becomes an attachment of the value and arrives as the path of a read-only file or folder with the same name.

The place of a value on the wire (`value`):

    {"size": n, "at": null | name, "fd": index, "type": …, "environment": …, "texts": {…}, "files": [attachment, …]}

at null and no `fd`: the payload is the frame's body. `at` is a name in the folder of outputs (task → host) or of inputs
(host → task); `fd` is the index of an open file that came with the frame. An attachment is

    {"name": "a.pdb", "at" | "given": name}       a file; one that the task was itself given is passed on by that name
    {"name": "results", "tree": [entry, …]}       a folder (task → host), an entry being one of
                                                  [path, "dir"], [path, "link", target], [path, "file", at, executable]
    {"name": "", "given": name}                   a blob in which buffers of this payload lie
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import sys
import threading
import types
from collections import ChainMap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cloudpickle

from executor.errors import UsageError
from executor.worker import memory, opaque
from executor.worker.preview import texts
from executor.worker.protocol import INLINE_BYTES, MOST_FDS, close_all

_MAGIC = b"RLV1"
_LENGTH = struct.Struct(">I")
_ALIGNMENT = 64
_OUT_OF_BAND_BYTES = 4096
_WORTH_PASSING_ON = 64 * 2**10
_MOST_GIVEN = MOST_FDS - 4
_MOST_ENTRIES = 50_000
_MADE_BY_CLASS_STATEMENT = 1 << 9  # Py_TPFLAGS_HEAPTYPE

#: What this thread opens: the attachments of the payload, by their index in it.
_OPENING = threading.local()


class Folders:
    """Where one attempt finds its inputs and leaves its outputs.

    inputs:  read-only files that the host put there
    outputs: where payloads and attachments are written for the host to take
    private: folders whose files mean nothing elsewhere, and so travel by content
    environment: the name of the attempt's environment, which its values carry with them
    """

    def __init__(self, inputs: str, outputs: str, private: Sequence[str], environment: str = "") -> None:
        self.inputs = os.path.realpath(inputs)
        self.outputs = outputs
        self.private = [os.path.realpath(folder) for folder in private]
        self.environment = environment
        self.maps = memory.Maps()
        self._count = 0
        self._lock = threading.Lock()

    def new_output(self) -> tuple[str, str]:
        """A fresh file in the folder of outputs: its name there, and its path."""
        with self._lock:
            self._count += 1
            name = f"v{self._count}"
        return name, os.path.join(self.outputs, name)


class Parcel(NamedTuple):
    """A value on its way: its place on the wire, its frame's body and open files, and path → index of what is attached."""

    place: dict[str, Any]
    body: bytes
    fds: list[int]
    attached: dict[str, int]


class Kept(NamedTuple):
    """The payload of a value that could not be opened, to be passed on as it came.

    data: its bytes, where it came in a frame's body; otherwise `at` is the name that it was given under
    """

    at: str | None
    data: bytes
    files: list[dict[str, Any]]
    type: str
    environment: str


def dump(value: Any, folders: Folders, *, keep: bool) -> Parcel:
    """Make a value ready to be sent.

    keep: whether the task goes on after this, so that its files must be copied and not linked
    """
    stream = _Writer()
    pickler = _Pickler(stream, folders, keep=keep)
    try:
        pickler.dump(value)
        parts = [stream.chunks, *([buffer] for buffer in pickler.own)]
    finally:  # it is part of a cycle, and CPython does not always survive collecting one with views of buffers in it
        pickler.clear_memo()
        pickler.own = []
    head = {
        "codec": "pickle",
        "python": list(sys.version_info[:2]),
        "code": pickler.code,
        "parts": [_size(part) for part in parts],
        "buffers": pickler.buffers,
    }
    chunks = list(_layout(head, parts))
    size = _size(chunks)
    place: dict[str, Any] = {"size": size, "at": None, "files": pickler.files, "type": opaque.type_name(value)}
    place.update(environment=folders.environment, texts=texts(value))
    if size <= INLINE_BYTES:
        return Parcel(place, b"".join(chunks), [], pickler.attached)
    fd = memory.make_sealed(chunks, size)
    if fd is not None:
        return Parcel({**place, "fd": 0}, b"", [fd], pickler.attached)
    place["at"], path = folders.new_output()
    with open(path, "wb", buffering=0) as file:
        for chunk in chunks:
            _write_all(file, chunk)
    return Parcel(place, b"", [], pickler.attached)


def dump_json(value: Any) -> bytes:
    """The payload of a JSON document; this is how the host makes the inputs of a root call."""
    text = json.dumps(value).encode()
    return b"".join(_layout({"codec": "json", "parts": [len(text)]}, [[text]]))


def load(place: dict[str, Any], body: bytes, folders: Folders, fds: Sequence[int] = ()) -> Any:
    """The value at a place, in which handles stand for what cannot be opened here (see `opaque`); closes the files."""
    try:
        opener = _Opener(folders, place["files"], fds)
        # A bytearray, because an array over bytes could not be written to.
        data = memoryview(bytearray(body)) if place["at"] is None else opener.map(place)
        value = opener.open(data, Kept(place["at"], body, place["files"], place["type"], place.get("environment", "")))
    finally:
        close_all(fds)
    opaque.label(value, place.get("texts", {}))
    return value


# -- writing -----------------------------------------------------------------------------------------------------------


class _Writer:
    """The file that a pickler writes to; large `bytes` are kept as they are, and not copied."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []

    def write(self, chunk: Any) -> None:
        """Take a chunk."""
        self.chunks.append(chunk)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle that keeps large buffers beside the pickle, attaches files, and passes on what it cannot open.

    buffers: where each lies: [0, index in `own` + 1] or [index in `files` + 1, offset, size]
    code:    the name of a function that travels as code, or empty
    """

    def __init__(self, file: _Writer, folders: Folders, *, keep: bool) -> None:
        self.own: list[memoryview] = []
        self.buffers: list[list[int]] = []
        self.files: list[dict[str, Any]] = []
        self.attached: dict[str, int] = {}
        self.code = ""
        self._given: dict[str, int] = {}
        self._folders, self._keep = folders, keep
        # Set before the C pickler starts, which looks at it once.
        ours = {
            type(pathlib.Path()): self._reduce_path,
            types.CodeType: self._reduce_code,
            memoryview: _reduce_view,
        }
        self.dispatch_table = ChainMap(ours, cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=5, buffer_callback=self._take_buffer)

    def reducer_override(self, obj: Any) -> Any:
        """What is asked first of every object that is no plain data."""
        if isinstance(obj, opaque.OpaqueType):
            return opaque.recipe(obj)
        if isinstance(obj, opaque.OpaqueValue):
            return self._reduce_whole(obj._args[0])
        if isinstance(obj, BaseException) and _has_arguments_of_its_own(type(obj)):
            return (_raise_again, (type(obj), obj.args), obj.__dict__ or None)
        return super().reducer_override(obj)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _OUT_OF_BAND_BYTES:
            return True
        found = self._folders.maps.find(raw) if raw.nbytes >= _WORTH_PASSING_ON else None
        if found and (found[0] in self._given or len(self._given) < _MOST_GIVEN):
            self.buffers.append([self._pass_on(found[0]) + 1, found[1], raw.nbytes])
        else:
            self.own.append(raw)
            self.buffers.append([0, len(self.own)])
        return False

    def _pass_on(self, at: str) -> int:
        """The index of the attachment that is a blob which we were given."""
        if at not in self._given:
            self.files.append({"name": "", "given": at})
            self._given[at] = len(self.files) - 1
        return self._given[at]

    def _reduce_code(self, code: types.CodeType) -> Any:
        self.code = self.code or code.co_name
        return cloudpickle.Pickler.dispatch_table[types.CodeType](code)

    def _reduce_whole(self, kept: Kept) -> tuple[Any, ...]:
        payload = kept.data if kept.at is None else self._pass_on(kept.at)
        indices = []
        for each in kept.files:
            if each["name"]:
                self.files.append({"name": each["name"], "given": each["at"]})
                indices.append(len(self.files) - 1)
            else:
                indices.append(self._pass_on(each["at"]))
        return (_reopen, (payload, indices, kept.type, kept.environment))

    def _reduce_path(self, path: pathlib.Path) -> tuple[Any, ...]:
        index = self._attach(os.fspath(path))
        return (type(path), path.parts) if index is None else (_attachment, (index,))

    def _attach(self, path: str) -> int | None:
        """The index of the attachment that carries this path; None for a path that travels by name."""
        real = os.path.realpath(path)
        if real in self.attached:
            return self.attached[real]
        given = real.startswith(self._folders.inputs + os.sep)
        if not given and not any(real.startswith(folder + os.sep) for folder in self._folders.private):
            return None
        name = os.path.basename(os.path.abspath(path))
        if given and os.path.exists(real):
            self.files.append({"name": name, "given": os.path.relpath(real, self._folders.inputs)})
        elif os.path.isfile(real):
            self.files.append({"name": name, "at": self._carry(real)})
        elif os.path.isdir(real):
            self.files.append({"name": name, "tree": self._tree(real)})
        else:
            return None
        self.attached[real] = len(self.files) - 1
        return self.attached[real]

    def _tree(self, top: str) -> list[list[Any]]:
        """The entries of a folder; raises `UsageError` for one with something in it that cannot travel."""
        entries: list[list[Any]] = []
        for folder, names, files in os.walk(top):
            for name in sorted([*names, *files]):
                path = os.path.join(folder, name)
                entries.append([os.path.relpath(path, top), *self._entry(path, top)])
            names[:] = sorted(name for name in names if not os.path.islink(os.path.join(folder, name)))
            if len(entries) > _MOST_ENTRIES:
                why, hint = f"it has more than {_MOST_ENTRIES} entries", "pack them into one archive"
                raise UsageError(f"the folder `{top}` cannot be passed to or from a task", why=why, hint=hint)
        return entries

    def _entry(self, path: str, top: str) -> list[Any]:
        if os.path.islink(path):
            target = os.readlink(path)
            if os.path.isabs(target) or not is_within(os.path.relpath(os.path.dirname(path), top), target):
                raise UsageError(
                    f"the folder `{top}` cannot be passed to or from a task",
                    why=f"the link `{os.path.relpath(path, top)}` in it leads out of it, to `{target}`",
                    hint="put a copy in its place, or leave it out",
                )
            return ["link", target]
        if os.path.isdir(path):
            return ["dir"]
        if not os.path.isfile(path):
            raise UsageError(
                f"the folder `{top}` cannot be passed to or from a task",
                why=f"`{os.path.relpath(path, top)}` in it is no file, folder or link",
                hint="leave it out",
            )
        return ["file", self._carry(path), os.access(path, os.X_OK)]

    def _carry(self, real: str) -> str:
        """The name of an output with the content of this file."""
        at, target = self._folders.new_output()
        if not would_fit(real, self._folders.outputs):
            why = f"it has holes, and its {os.path.getsize(real)} bytes, written out, do not fit on the disk"
            raise UsageError(f"the file `{real}` cannot be passed to or from a task", why=why)
        if self._keep:  # the task goes on and may change the file
            shutil.copyfile(real, target)
        else:
            try:
                os.link(real, target)
            except OSError:  # another file system, such as the tmpfs on /tmp
                shutil.copyfile(real, target)
        return at


def _has_arguments_of_its_own(kind: type[BaseException]) -> bool:
    """Whether an exception cannot be made again by calling its class with its `args`, as pickle does it.

    That is so where its `__init__` is Python's; below it must be an exception that keeps nothing but its `args`.
    """
    pickled_plainly = (kind.__reduce__, kind.__reduce_ex__) == (BaseException.__reduce__, BaseException.__reduce_ex__)
    below = next(base for base in kind.__mro__ if not base.__flags__ & _MADE_BY_CLASS_STATEMENT)
    keeps_args_only = below.__basicsize__ == BaseException.__basicsize__ and not isinstance(
        kind.__new__, types.FunctionType
    )
    return isinstance(kind.__init__, types.FunctionType) and pickled_plainly and keeps_args_only


def _raise_again(kind: Any, args: tuple[Any, ...]) -> Any:
    """An exception with these `args`; its `__init__`, which may ask for others, is not called."""
    if isinstance(kind, opaque.OpaqueType):
        return kind(*args)
    made = kind.__new__(kind, *args)
    made.args = args
    return made


def would_fit(path: str, folder: str) -> bool:
    """Whether a file that may have holes could be written out where a folder is. To read it all takes as long."""
    there, disk = os.stat(path), os.statvfs(folder)
    return there.st_size <= there.st_blocks * 512 + disk.f_bavail * disk.f_frsize


def is_within(folder: str, target: str) -> bool:
    """Whether a relative path, from a folder of a tree, stays in that tree; all of them without a leading slash."""
    path = os.path.normpath(os.path.join(folder, target))
    return not os.path.isabs(target) and path != ".." and not path.startswith(".." + os.sep)


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    """A view as one of the same form, over memory of its own; also what a handle keeps goes on like this."""
    if not view.contiguous:
        raise TypeError("cannot pickle a memoryview with gaps in it")
    return (_view, (pickle.PickleBuffer(view), view.format, view.shape))


def _layout(head: dict[str, Any], parts: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """The chunks of a payload, in order, each part padded to the alignment that arrays like."""
    text = json.dumps(head, separators=(",", ":")).encode()
    start = _MAGIC + _LENGTH.pack(len(text)) + text
    yield start + bytes(-len(start) % _ALIGNMENT)
    for part in parts:
        yield from part
        yield bytes(-_size(part) % _ALIGNMENT)


def _size(chunks: Sequence[Any]) -> int:
    return sum(memoryview(chunk).nbytes for chunk in chunks)


def _write_all(file: io.RawIOBase | io.FileIO, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk).cast("B")
    while view:
        written = file.write(view)
        view = view[written or 0 :]


# -- reading -----------------------------------------------------------------------------------------------------------


class _Opener:
    """Opens a payload and the blobs that belong to it."""

    def __init__(self, folders: Folders, files: Sequence[dict[str, Any]], fds: Sequence[int]) -> None:
        self._folders, self._files, self._fds = folders, files, fds
        self._blobs: dict[int, memoryview] = {}

    def map(self, entry: dict[str, Any]) -> memoryview:
        """A private map of what lies at a place."""
        if "fd" in entry:
            return self._folders.maps.map(self._fds[entry["fd"]], entry["at"])
        with open(os.path.join(self._folders.inputs, entry["at"]), "rb") as file:
            return self._folders.maps.map(file.fileno(), entry["at"])

    def blob(self, index: int) -> memoryview:
        """A private map of an attachment, made once."""
        if index not in self._blobs:
            self._blobs[index] = self.map(self._files[index])
        return self._blobs[index]

    def name(self, index: int) -> str:
        """The name that an attachment was given under."""
        return str(self._files[index]["at"])

    def path(self, index: int) -> pathlib.Path:
        """Where an attachment lies."""
        return pathlib.Path(self._folders.inputs, self.name(index))

    def inner(self, indices: Sequence[int]) -> tuple[_Opener, list[dict[str, Any]]]:
        """What opens a payload that is itself an attachment, and the attachments of that."""
        files = [self._files[index] for index in indices]
        return _Opener(self._folders, files, self._fds), files

    def open(self, data: memoryview, kept: Kept) -> Any:
        """The value of a payload, or a handle for all of it."""
        head, parts = split(data)
        if head["codec"] == "json":
            return json.loads(bytes(parts[0]))
        made_by, ours = ".".join(map(str, head["python"])), ".".join(map(str, sys.version_info[:2]))
        if head["code"] and made_by != ours:
            reason = f"`{head['code']}` in it travels as code of Python {made_by}, which Python {ours} cannot run"
            return opaque.whole(kept, kept.type, kept.environment, "", reason)
        with self._at_work(), opaque.opening(kept.environment):
            buffers = [self._buffer(where, parts) for where in head["buffers"]]
            unpickler = _Unpickler(_Reader(parts[0]), buffers=buffers)
            try:
                return unpickler.load()
            except Exception:
                if not unpickler.missing:
                    raise
                return opaque.whole(kept, kept.type, kept.environment, unpickler.missing)

    def _buffer(self, where: list[int], parts: list[memoryview]) -> memoryview:
        if where[0] == 0:
            return parts[where[1]]
        index, offset, size = where
        return self.blob(index - 1)[offset : offset + size]

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        before = getattr(_OPENING, "opener", None)
        _OPENING.opener = self
        try:
            yield
        finally:
            _OPENING.opener = before


class _Unpickler(pickle.Unpickler):
    """Stands in for classes and functions that are not here; `missing` is then the module that was."""

    missing = ""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of this name."""
        found = opaque.find(module, name, lambda: super(_Unpickler, self).find_class(module, name))
        info = opaque.opaque_info(found)
        self.missing = self.missing or (info.module if info else "")
        return found


class _Reader:
    """The file that an unpickler reads from, over memory that is not copied."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def read(self, size: int) -> bytes:
        """The next bytes."""
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def readinto(self, target: Any) -> int:
        """Fill a buffer with the next bytes."""
        into = memoryview(target).cast("B")
        taken = self._data[self._at : self._at + into.nbytes]
        into[: taken.nbytes] = taken
        self._at += taken.nbytes
        return taken.nbytes

    def readline(self) -> bytes:
        """The bytes to the end of the line; only old protocols have lines."""
        rest = bytes(self._data[self._at :])
        line = rest[: rest.find(b"\n") + 1]
        self._at += len(line)
        return line


def is_payload(data: Any) -> bool:
    """Whether bytes begin as a payload does."""
    return bytes(data[:4]) == _MAGIC


def pickle_of(data: memoryview) -> bytes:
    """The pickle in a payload, without its buffers; empty where there is none."""
    head, parts = split(data)
    return b"" if head.get("codec") == "json" else bytes(parts[0])


def split(data: memoryview) -> tuple[dict[str, Any], list[memoryview]]:
    """The head of a payload, and its parts: the pickle or JSON, and what buffers lie in it."""
    if bytes(data[:4]) != _MAGIC:
        raise ValueError("this is not a value of run-local, or it was damaged")
    end = 8 + _LENGTH.unpack(data[4:8])[0]
    head = json.loads(bytes(data[8:end]))
    parts, at = [], end + -end % _ALIGNMENT
    for size in head["parts"]:
        parts.append(data[at : at + size])
        at += size + -size % _ALIGNMENT
    return head, parts


def _attachment(index: int) -> pathlib.Path:
    path: pathlib.Path = _OPENING.opener.path(index)
    return path


def _view(buffer: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    flat: Any = memoryview(buffer).cast("B")
    made: memoryview = flat if 0 in shape or (form, len(shape)) == ("B", 1) else flat.cast(form, shape)
    return made


def _reopen(payload: bytes | int, indices: list[int], type_name: str, environment: str) -> Any:
    """Open a value that its last receiver could not open, and passed on as it came."""
    outer: _Opener = _OPENING.opener
    opener, files = outer.inner(indices)
    if isinstance(payload, int):
        kept = Kept(outer.name(payload), b"", files, type_name, environment)
        return opener.open(outer.blob(payload), kept)
    return opener.open(memoryview(bytearray(payload)), Kept(None, payload, files, type_name, environment))
