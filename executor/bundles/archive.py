"""The format of a bundle: an uncompressed tar whose every byte is accounted for.

    manifest.json     what the bundle is of, and the path, size and SHA-256 of every other member
    …                 regular files only, in the order of the manifest
    digest            the SHA-256 of all that comes before it, which is also the name of the bundle

The same content gives the same bytes. A bundle is read once as a whole before anything of it is used: a byte that is not
as it was written is found by the last member, and a member that the manifest does not allow is refused by its path.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from executor.data.store import full_disk
from executor.errors import UsageError

MANIFEST, DIGEST = "manifest.json", "digest"
_FORMAT = 1
_MOST_MANIFEST_BYTES = 256 * 2**20
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was read and found whole.

    about: what it is of; digest: its name; members: path → file
    """

    about: Mapping[str, Any]
    digest: str
    members: Mapping[str, Path]


def write_bundle(target: Path, about: Mapping[str, Any], members: Mapping[str, Path | bytes]) -> str:
    """Write a bundle; answers with its digest. A file that is there already is replaced once the new one is whole."""
    with full_disk(f"the bundle `{target}` cannot be written"):
        try:
            descriptor, half = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
            raise UsageError(f"`{target}` cannot be written", why=str(exc)) from exc
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest = _write(file, about, members)
            Path(half).chmod(0o644)
            Path(half).replace(target)
        except OSError as exc:
            if isinstance(exc, IsADirectoryError):
                raise UsageError(f"`{target}` cannot be written", why="it is a folder") from exc
            raise
        finally:
            Path(half).unlink(missing_ok=True)
    return digest


def _write(file: IO[bytes], about: Mapping[str, Any], members: Mapping[str, Path | bytes]) -> str:
    listed = {path: _facts(source) for path, source in sorted(members.items())}
    manifest = json.dumps({"format": _FORMAT, **about, "members": listed}, indent=1, sort_keys=True).encode()
    hashed = _Hashed(file)
    _add(hashed, MANIFEST, io.BytesIO(manifest), len(manifest))
    for path, facts in listed.items():
        source = members[path]
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
            _add(hashed, path, content, facts["size"], executable=facts["executable"])
    digest = hashed.hasher.hexdigest()
    file.write(_tail(digest))
    return digest


def _facts(source: Path | bytes) -> dict[str, Any]:
    if isinstance(source, bytes):
        return {"size": len(source), "sha256": hashlib.sha256(source).hexdigest(), "executable": False}
    hasher = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
        return {"size": file.tell(), "sha256": hasher.hexdigest(), "executable": os.access(source, os.X_OK)}


class _Hashed:
    """A file whose content is hashed as it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hasher = file, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.hasher.update(data)
        self._file.write(data)


def _add(file: _Hashed, path: str, content: IO[bytes], size: int, *, executable: bool = False) -> None:
    file.write(_header(path, size, executable=executable))
    left = size
    while chunk := content.read(min(_CHUNK, left)):
        file.write(chunk)
        left -= len(chunk)
    if left:
        raise UsageError(f"`{path}` changed while it was bundled", hint="try again")
    file.write(bytes(-size % tarfile.BLOCKSIZE))


def _header(path: str, size: int, *, executable: bool = False) -> bytes:
    member = tarfile.TarInfo(path)
    member.size, member.mode = size, 0o755 if executable else 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _tail(digest: str) -> bytes:
    """The last member, and the end that a tar has."""
    content = digest.encode()
    return _header(DIGEST, len(content)) + content.ljust(tarfile.BLOCKSIZE, b"\0") + bytes(2 * tarfile.BLOCKSIZE)


def read_bundle(source: Path, folder: Path) -> Bundle:
    """Check every byte of a bundle, and unpack it into an empty folder.

    Raises `UsageError` for what is no bundle, is damaged, is of a later format, or holds what no bundle may hold.
    """
    try:
        with source.open("rb") as file:
            digest = _check(file, source)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return _unpack(tar, folder, digest, source)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as exc:
        raise UsageError(f"`{source}` cannot be read", why=str(exc)) from exc
    except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _refused(source, f"it is no bundle of run-local: {exc}") from exc


def _check(file: IO[bytes], source: Path) -> str:
    """The digest of a bundle, all bytes of which are as they were written."""
    length = len(_tail("0" * 64))
    body = file.seek(0, os.SEEK_END) - length
    if body <= 0:
        raise _refused(source, "it is too short")
    file.seek(0)
    hasher, left = hashlib.sha256(), body
    while left and (chunk := file.read(min(_CHUNK, left))):
        hasher.update(chunk)
        left -= len(chunk)
    if file.read() != _tail(hasher.hexdigest()):
        raise _refused(source, "its content is not what its digest says: it was damaged, or cut off, or is no bundle")
    file.seek(0)
    return hasher.hexdigest()


def _unpack(tar: tarfile.TarFile, folder: Path, digest: str, source: Path) -> Bundle:
    first = tar.next()
    if first is None or first.name != MANIFEST or not _is_plain(first) or first.size > _MOST_MANIFEST_BYTES:
        raise _refused(source, f"it does not begin with `{MANIFEST}`")
    manifest = json.loads(_content(tar, first).read())
    if manifest["format"] != _FORMAT:
        why = f"its format is {manifest['format']!r}, and this run-local reads {_FORMAT}"
        raise UsageError(f"`{source}` cannot be read", why=why, hint="a later version of run-local may")
    listed: dict[str, Any] = manifest.pop("members")
    if unsafe := [path for path in listed if not _is_safe(path)]:
        raise _refused(source, f"it lists `{unsafe[0]}`, which is no path inside of it")
    found: dict[str, Path] = {}
    while (member := tar.next()) and member.name != DIGEST:
        if not _is_plain(member) or member.name not in listed or member.name in found:
            raise _refused(source, f"it holds `{member.name}`, which its manifest does not allow")
        facts, target = listed[member.name], folder / member.name
        if member.size != facts["size"]:
            raise _refused(source, f"`{member.name}` has {member.size} bytes, and {facts['size']} were announced")
        target.parent.mkdir(parents=True, exist_ok=True)
        if _copy(_content(tar, member), target) != facts["sha256"]:
            raise _refused(source, f"the content of `{member.name}` is not what its manifest says")
        target.chmod(0o755 if facts["executable"] else 0o644)
        found[member.name] = target
    if lost := [path for path in listed if path not in found]:
        raise _refused(source, f"`{lost[0]}` is not in it")
    return Bundle(about=manifest, digest=digest, members=found)


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file, and no bytes of it are only thought of."""
    return member.type == tarfile.REGTYPE and not member.issparse()


def _is_safe(path: str) -> bool:
    """Whether a path leads to a file below the folder that it is unpacked to, in one way only."""
    return (
        str(PurePosixPath(path)) == path
        and path not in ("", ".", MANIFEST, DIGEST)
        and not (path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path)
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(member)
    assert found is not None
    return found


def _copy(content: IO[bytes], target: Path) -> str:
    hasher = hashlib.sha256()
    with full_disk("a bundle cannot be unpacked"), target.open("xb") as file:
        while chunk := content.read(_CHUNK):
            hasher.update(chunk)
            file.write(chunk)
    return hasher.hexdigest()


def _refused(source: Path, why: str) -> UsageError:
    return UsageError(
        f"`{source}` is refused", why=why, hint="have it made and copied again: `run-local bundle RUN -o FILE`"
    )


@contextlib.contextmanager
def unpacked(source: Path, parent: Path) -> Iterator[Bundle]:
    """A bundle, checked and unpacked to a temporary folder."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="bundle-") as folder:
        yield read_bundle(source, Path(folder))
