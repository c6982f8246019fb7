"""Layers of images: one per package, made once, the same to the byte wherever it is made.

`home/layers/<key>.tar.zst` holds the members of a tar archive without its end, so that several packages can be one layer;
`<key>.json` its digest and size. A layer is what a package is, for which Python, at which prefix.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from executor.environments import archive
from executor.environments.archive import Layer

_RECIPE = 1
_LEVEL = 1
_CHUNK = 2**20

#: Engines allow 127 layers and start containers more slowly above a few dozen.
MOST_LAYERS = 60


@dataclass(frozen=True, kw_only=True)
class Part:
    """A package as a part of a layer: how many bytes, and their file."""

    key: str
    name: str
    size: int
    digest: str
    file: Path


def part_key(package: Mapping[str, Any], python: str, prefix: str) -> str:
    """Changes when the files of a package in an image do."""
    content = [_RECIPE, package["manager"], package["name"], package["sha256"], python, prefix]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def find_part(key: str, home: Path) -> Part | None:
    """A part that was made, if both its files are whole."""
    file = home / "layers" / f"{key}.tar.zst"
    try:
        facts = json.loads(file.with_name(f"{key}.json").read_text())
        if file.stat().st_size == facts["stored"]:
            return Part(key=key, name=facts["name"], size=facts["size"], digest=facts["digest"], file=file)
    except (OSError, ValueError, KeyError):
        pass
    return None


def make_part(key: str, name: str, folder: Path, files: Sequence[str], prefix: str, home: Path) -> None:
    """Pack these files of an installed folder, and keep the part under its key."""
    target = home / "layers" / f"{key}.tar.zst"
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, half = tempfile.mkstemp(dir=target.parent, prefix="half-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            stream = _Compressing(file)
            archive.pack_files(folder, files, prefix, stream)
            stream.close()
        facts = {"name": name, "size": stream.size, "digest": stream.digest.hexdigest(), "stored": stream.stored}
        Path(half).replace(target)
    finally:
        Path(half).unlink(missing_ok=True)
    note = target.with_name(f"{key}.json")
    half_note = note.with_name(f"half-{os.getpid()}-{key}.json")
    half_note.write_text(json.dumps(facts))
    half_note.replace(note)


def arrange(parts: Mapping[str, Part], first: str, popularity: Mapping[str, int], room: int) -> list[list[str]]:
    """Which packages make up which layer, lowest first: at most `room` layers, the tail of small ones in the last.

    An engine shares a layer between images only where everything below it is the same. So what more environments hold
    lies deeper, and of these the larger; `first` lies below all.

    parts, popularity: by package, and how many environments of the project hold it
    """
    order = sorted(parts, key=lambda each: (each != first, -popularity.get(each, 1), -parts[each].size, each))
    return [*([each] for each in order[: room - 1]), *([order[room - 1 :]] if order[room - 1 :] else [])]


def layer(parts: Sequence[Part]) -> Layer:
    """The layer of these parts; that of a single one is known without reading it."""
    if len(parts) == 1:
        size = parts[0].size + len(archive.END)
        return Layer(digest=f"sha256:{parts[0].digest}", size=size, chunks=lambda: _plain(parts[0]))
    digest, size = hashlib.sha256(), 0
    for chunk in _joined(parts):
        digest.update(chunk)
        size += len(chunk)
    return Layer(digest=f"sha256:{digest.hexdigest()}", size=size, chunks=lambda: _joined(parts))


def _plain(part: Part) -> Iterator[bytes]:
    with part.file.open("rb") as file:
        yield from zstandard.ZstdDecompressor().read_to_iter(file, write_size=_CHUNK)
    yield archive.END


def _joined(parts: Sequence[Part]) -> Iterator[bytes]:
    """The members of all, each name once: engines refuse a layer that has one twice. The first part that has it wins."""
    seen: set[str] = set()
    for part in parts:
        with (
            part.file.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as plain,
            tarfile.open(fileobj=plain, mode="r|") as members,
        ):
            for member in members:
                if member.name in seen:
                    continue
                seen.add(member.name)
                yield member.tobuf(tarfile.GNU_FORMAT)
                content = members.extractfile(member) if member.isreg() else None
                while content and (chunk := content.read(_CHUNK)):
                    yield chunk
                yield bytes(-member.size % 512)
    yield archive.END


class _Compressing:
    """A file for writing that compresses, and knows the digest of the layer that this alone would be."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._stream = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False)
        self.digest = hashlib.sha256()
        self.size = self.stored = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        self._stream.write(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()  # type: ignore[no-untyped-call]
        self._file.flush()
        self.stored = self._file.tell()
        self.digest.update(archive.END)
