"""Values as bytes: cloudpickle protocol 5, large buffers out of band, files by content.

A payload describes itself:

    b"RLV1" | length of the head (u32) | head (JSON) | padding | pickle | padding | buffer | padding | buffer …

so a consumer maps the file and its arrays lie in the map: nothing is copied, and because the map is private, an array
arrives writable without anybody else seeing what is written. A payload made by the host of JSON given on the command
line has `"codec": "json"`; the host never makes or opens a pickle.

A `pathlib.Path` to a file in the attempt's own folders means nothing in another container, so its content travels: the
file becomes an attachment of the value and arrives as the path of a read-only file with the same name.

The place of a value on the wire (`value`):

    {"size": n, "name": null | file, "files": [{"name": "a.pdb", "at": file}, …]}

name null: the payload is the frame's body. `at` and `name` are relative to the folder of outputs (task → host) or of
inputs (host → task); an attachment that the task was itself given is passed on as `{"name": …, "given": at}`.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import pathlib
import pickle
import shutil
import struct
import sys
import threading
from collections import ChainMap
from collections.abc import Iterator, Sequence
from typing import Any

import cloudpickle

from executor.errors import MissingModule, UsageError
from executor.worker.protocol import INLINE_BYTES

_MAGIC = b"RLV1"
_LENGTH = struct.Struct(">I")
_ALIGNMENT = 64
_OUT_OF_BAND_BYTES = 4096

#: Since Python 3.13 a map need not keep its file open.
_WITHOUT_FILE: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

#: The attachments of the payload that this thread is opening.
_OPENING = threading.local()


class Folders:
    """Where one attempt finds its inputs and leaves its outputs.

    inputs:  read-only files that the host put there
    outputs: where payloads and attachments are written for the host to take
    private: folders whose files mean nothing elsewhere, and so travel by content
    """

    def __init__(self, inputs: str, outputs: str, private: Sequence[str]) -> None:
        self.inputs = os.path.realpath(inputs)
        self.outputs = outputs
        self.private = [os.path.realpath(folder) for folder in private]
        self._count = 0
        self._lock = threading.Lock()

    def new_output(self) -> tuple[str, str]:
        """A fresh file in the folder of outputs: its name there, and its path."""
        with self._lock:
            self._count += 1
            name = f"v{self._count}"
        return name, os.path.join(self.outputs, name)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle that keeps large buffers beside the pickle and attaches files."""

    def __init__(self, file: io.BytesIO, folders: Folders, *, keep: bool) -> None:
        self.buffers: list[memoryview] = []
        self.files: list[dict[str, str]] = []
        self.attached: dict[str, int] = {}
        self._folders, self._keep = folders, keep
        # Set before the C pickler starts, which looks at it once.
        self.dispatch_table = ChainMap({type(pathlib.Path()): self._reduce_path}, cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=5, buffer_callback=self._take_buffer)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _OUT_OF_BAND_BYTES:
            return True
        self.buffers.append(raw)
        return False

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
        if os.path.isdir(real):
            raise UsageError(
                f"the folder `{path}` cannot be passed to or from a task yet",
                why="only single files travel by content",
                hint="pass its files as a list of paths, or pack them into one archive",
            )
        if not os.path.isfile(real):
            return None
        self.files.append(self._carry(real, os.path.basename(path), given=given))
        self.attached[real] = len(self.files) - 1
        return self.attached[real]

    def _carry(self, real: str, name: str, *, given: bool) -> dict[str, str]:
        if given:
            return {"name": name, "given": os.path.relpath(real, self._folders.inputs)}
        at, target = self._folders.new_output()
        if self._keep:  # the task goes on and may change the file
            shutil.copyfile(real, target)
        else:
            try:
                os.link(real, target)
            except OSError:  # another file system, such as the tmpfs on /tmp
                shutil.copyfile(real, target)
        return {"name": name, "at": at}


def dump(value: Any, folders: Folders, *, keep: bool) -> tuple[dict[str, Any], bytes, dict[str, int]]:
    """A value's place on the wire, its frame's body, and path → index of the files attached to it.

    keep: whether the task goes on after this, so that its files must be copied and not linked
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, folders, keep=keep)
    pickler.dump(value)
    pickled = stream.getbuffer()
    parts = [pickled, *pickler.buffers]
    head = {"codec": "pickle", "python": list(sys.version_info[:2]), "parts": [part.nbytes for part in parts]}
    chunks = list(_layout(head, parts))
    size = sum(memoryview(chunk).nbytes for chunk in chunks)
    place: dict[str, Any] = {"size": size, "name": None, "files": pickler.files, "type": _type_name(value)}
    if size <= INLINE_BYTES:
        return place, b"".join(chunks), pickler.attached
    place["name"], path = folders.new_output()
    with open(path, "wb", buffering=0) as file:
        for chunk in chunks:
            _write_all(file, chunk)
    return place, b"", pickler.attached


def dump_json(value: Any) -> bytes:
    """The payload of a JSON document; this is how the host makes the inputs of a root call."""
    text = json.dumps(value).encode()
    return b"".join(_layout({"codec": "json", "parts": [len(text)]}, [memoryview(text)]))


def load(place: dict[str, Any], body: bytes, folders: Folders) -> Any:
    """The value at a place. Raises `MissingModule` where a package that it needs is not in this environment."""
    if place["name"] is None:
        data = memoryview(bytearray(body))  # not bytes: an array over bytes could not be written to
    else:
        with open(os.path.join(folders.inputs, place["name"]), "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY, **_WITHOUT_FILE))
    head, parts = _split(data)
    if head["codec"] == "json":
        return json.loads(bytes(parts[0]))
    with _attachments([os.path.join(folders.inputs, each["at"]) for each in place["files"]]):
        try:
            return pickle.loads(parts[0], buffers=parts[1:])
        except ImportError as exc:
            raise _cannot_open(place, exc) from exc


def _layout(head: dict[str, Any], parts: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    """The chunks of a payload, in order, each part padded to the alignment that arrays like."""
    text = json.dumps(head, separators=(",", ":")).encode()
    start = _MAGIC + _LENGTH.pack(len(text)) + text
    yield start + bytes(-len(start) % _ALIGNMENT)
    for part in parts:
        yield part
        yield bytes(-part.nbytes % _ALIGNMENT)


def _split(data: memoryview) -> tuple[dict[str, Any], list[memoryview]]:
    if bytes(data[:4]) != _MAGIC:
        raise ValueError("this is not a value of run-local, or it was damaged")
    end = 8 + _LENGTH.unpack(data[4:8])[0]
    head = json.loads(bytes(data[8:end]))
    parts, at = [], end + -end % _ALIGNMENT
    for size in head["parts"]:
        parts.append(data[at : at + size])
        at += size + -size % _ALIGNMENT
    return head, parts


def _write_all(file: io.RawIOBase | io.FileIO, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk).cast("B")
    while view:
        written = file.write(view)
        view = view[written or 0 :]


@contextlib.contextmanager
def _attachments(paths: list[str]) -> Iterator[None]:
    before = getattr(_OPENING, "paths", [])
    _OPENING.paths = paths
    try:
        yield
    finally:
        _OPENING.paths = before


def _attachment(index: int) -> pathlib.Path:
    return pathlib.Path(_OPENING.paths[index])


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _cannot_open(place: dict[str, Any], exc: ImportError) -> MissingModule:
    missing = (exc.name or "").partition(".")[0] or str(exc)
    return MissingModule(
        f"a value of type `{place.get('type', '?')}` cannot be opened here",
        why=f"this environment does not hold `{missing}`, which the value is made of",
        hint=f"add `{missing}` to this environment, or let the task return plain data, bytes or a `pathlib.Path`",
    )
