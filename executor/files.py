"""`File` and `Dir`: files and folders as values, with the names that Flyte 2 gives them.

    made = File.new_remote("model.pdb")
    with made.open_sync("w") as file: …
    return made

Both are a `pathlib.Path` with a type that says which of the two it is. Such a path travels by content, and arrives as the
path of a read-only file or folder with the same name; see docs/writing-workflows.md.

This module travels into containers: stdlib only, Python 3.9.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any, Optional, TypeVar, Union

_Self = TypeVar("_Self", bound="_OnDisk")


class _OnDisk:
    """What `File` and `Dir` have in common."""

    def __init__(self, path: Union[str, "os.PathLike[str]"]) -> None:
        self._path = pathlib.Path(path)

    @property
    def path(self) -> pathlib.Path:
        """Where it lies, for the task that looks."""
        return self._path

    @property
    def name(self) -> str:
        """The last part of its path, which it keeps on its way."""
        return self._path.name

    @classmethod
    def from_local_sync(cls: type[_Self], path: Union[str, "os.PathLike[str]"]) -> _Self:
        """What lies at this path."""
        return cls(path)

    @classmethod
    async def from_local(cls: type[_Self], path: Union[str, "os.PathLike[str]"]) -> _Self:
        """What lies at this path."""
        return cls(path)

    def exists_sync(self) -> bool:
        """Whether there is anything at its path."""
        return self._path.exists()

    async def exists(self) -> bool:
        """Whether there is anything at its path."""
        return self._path.exists()

    def download_sync(self) -> str:
        """Its path as text: its content has come with it."""
        return str(self._path)

    async def download(self) -> str:
        """Its path as text: its content has come with it."""
        return str(self._path)

    def __fspath__(self) -> str:
        return str(self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._path,))

    def __eq__(self, other: object) -> bool:
        return self._path == other._path if isinstance(other, _OnDisk) and type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"


class File(_OnDisk):
    """A file as a value."""

    @classmethod
    def new_remote(cls, name: Optional[str] = None) -> "File":
        """A file that is yet to be written, in a temporary folder of its own."""
        return cls(pathlib.Path(tempfile.mkdtemp(), name or "file"))

    def open_sync(self, mode: str = "rb", **how: Any) -> IO[Any]:
        """The open file, as `open` gives it; a context manager."""
        return self._path.open(mode, **how)

    @contextlib.asynccontextmanager
    async def open(self, mode: str = "rb", **how: Any) -> AsyncIterator["_AsyncFile"]:
        """The open file, with `await` before each `read` and `write`."""
        with self._path.open(mode, **how) as file:
            yield _AsyncFile(file)


class Dir(_OnDisk):
    """A folder as a value."""

    @classmethod
    def new_remote(cls, name: Optional[str] = None) -> "Dir":
        """An empty folder below a temporary one."""
        path = pathlib.Path(tempfile.mkdtemp(), name or "folder")
        path.mkdir()
        return cls(path)

    def walk_sync(self, recursive: bool = True) -> Iterator[File]:
        """The files in it, also those in its folders."""
        found = self._path.rglob("*") if recursive else self._path.glob("*")
        return (File(path) for path in sorted(found) if path.is_file())

    async def walk(self, recursive: bool = True) -> AsyncIterator[File]:
        """The files in it, also those in its folders."""
        for file in self.walk_sync(recursive):
            yield file

    def list_files_sync(self) -> list[File]:
        """The files directly in it."""
        return list(self.walk_sync(recursive=False))

    async def list_files(self) -> list[File]:
        """The files directly in it."""
        return self.list_files_sync()


class _AsyncFile:
    """An open file for async code; what it does is done at once."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    async def read(self, size: int = -1) -> Any:
        """Read as of the file."""
        return self._file.read(size)

    async def write(self, data: Any) -> int:
        """Write as of the file."""
        return self._file.write(data)
