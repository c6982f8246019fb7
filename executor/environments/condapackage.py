"""A conda package as a file: a zip of two compressed tars, one of what it says, one of what it holds.

The same files give the same bytes: everything is sorted, and there are no times and no owners. The format is the one that
conda's documentation calls version 2 (`.conda`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

#: What stands in a script for the folder that the package will be installed in.
PLACEHOLDER = "/opt/run-local-prefix-placeholder"

#: Changes when the same files may give other bytes.
FORMAT = f"conda 2, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"

_LEVEL = 3  # a higher one takes ten times as long, for a tenth of the size
_CHUNK = 2**20
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a package.

    path:   from the prefix, or from `site-packages` and `python-scripts` in a package for any platform
    size, read: its content; of a link, `target` instead
    prefix: its text names `PLACEHOLDER`
    """

    path: str
    size: int = 0
    read: Callable[[], IO[bytes]] = io.BytesIO
    executable: bool = False
    target: str | None = None
    prefix: bool = False


def entry_of(path: str, data: bytes, *, executable: bool = False, prefix: bool = False) -> Entry:
    """A file with this content."""
    return Entry(path=path, size=len(data), read=lambda: io.BytesIO(data), executable=executable, prefix=prefix)


def file_name(record: Mapping[str, Any]) -> str:
    """How the file of a package is called."""
    return f"{record['name']}-{record['version']}-{record['build']}.conda"


def write_package(
    folder: Path, record: Mapping[str, Any], entries: Iterable[Entry], *, summary: str, entry_points: Iterable[str] = ()
) -> dict[str, Any]:
    """Write a package below a channel's folder; answers with its record as an index has it: with digests and size."""
    stem = file_name(record).removesuffix(".conda")
    target = folder / record["subdir"] / f"{stem}.conda"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".half-") as scratch:
        content, half = Path(scratch, "content"), Path(scratch, "package")
        paths = _write_content(content, sorted(entries, key=lambda entry: entry.path))
        info = _compressed(_info(record, paths, summary, list(entry_points)))
        with zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_member("metadata.json"), json.dumps({"conda_pkg_format_version": 2}))
            with content.open("rb") as file:
                _copy(archive, f"pkg-{stem}.tar.zst", file, content.stat().st_size)
            _copy(archive, f"info-{stem}.tar.zst", io.BytesIO(info), len(info))
        sums = _sums(half)
        half.replace(target)
    return {**record, **sums}


def _sums(path: Path) -> dict[str, Any]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest(), "size": path.stat().st_size}


def _write_content(target: Path, entries: list[Entry]) -> list[dict[str, Any]]:
    """Write the tar of the files; answers with what `paths.json` says of them."""
    paths: list[dict[str, Any]] = []
    with (
        target.open("wb") as file,
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        for entry in entries:
            header = tarfile.TarInfo(entry.path)
            if entry.target is not None:
                header.type, header.linkname = tarfile.SYMTYPE, entry.target
                archive.addfile(header)
                paths.append({"_path": entry.path, "path_type": "softlink"})
                continue
            header.size, header.mode = entry.size, 0o755 if entry.executable else 0o644
            with entry.read() as content:
                hashing = _Hashing(content)
                archive.addfile(header, hashing)
            described: dict[str, Any] = {
                "_path": entry.path,
                "path_type": "hardlink",
                "sha256": hashing.digest.hexdigest(),
                "size_in_bytes": entry.size,
            }
            if entry.prefix:
                described |= {"file_mode": "text", "prefix_placeholder": PLACEHOLDER}
            paths.append(described)
    return paths


class _Hashing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._stream.read(size)
        self.digest.update(data)
        return data


def _info(
    record: Mapping[str, Any], paths: list[dict[str, Any]], summary: str, entry_points: list[str]
) -> dict[str, Any]:
    files: dict[str, Any] = {
        "info/about.json": {"summary": summary},
        "info/index.json": dict(record),
        "info/paths.json": {"paths": paths, "paths_version": 1},
    }
    if record.get("noarch") == "python":
        files["info/link.json"] = {
            "noarch": {"type": "python", "entry_points": entry_points},
            "package_metadata_version": 1,
        }
    return files


def _compressed(documents: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, document in sorted(documents.items()):
            data = json.dumps(document, sort_keys=True).encode()
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(buffer.getvalue())


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _LONG_AGO)
    member.external_attr = 0o644 << 16
    return member


def _copy(archive: zipfile.ZipFile, name: str, source: IO[bytes], size: int) -> None:
    member = _member(name)
    member.file_size = size
    with archive.open(member, "w") as target:
        shutil.copyfileobj(source, target, _CHUNK)


def entries_below(folder: Path) -> list[Entry]:
    """Every file of a folder; programs and libraries can be executed."""
    return [_entry_of_file(path, folder) for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]


def _entry_of_file(path: Path, folder: Path) -> Entry:
    name = str(path.relative_to(folder))
    if path.is_symlink():
        return Entry(path=name, target=str(path.readlink()))
    executable = os.access(path, os.X_OK) and path.parent.name in ("bin", "lib")
    return Entry(path=name, size=path.stat().st_size, read=lambda: path.open("rb"), executable=executable)
