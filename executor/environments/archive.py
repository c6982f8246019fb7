"""Layers and images as files: deterministic tars, and the archive that an engine loads.

The same files give the same bytes: names sorted, no owners, no times. The archive is `docker save`'s format, version 1.2
of the Docker image specification; an engine that has a layer already does not need its file in there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EPOCH = "1970-01-01T00:00:00Z"
_CHUNK = 2**20

#: What ends a tar archive.
END = bytes(1024)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer: its digest, its size in bytes, and what reads it from its start, or None where the engine has it."""

    digest: str
    size: int = 0
    chunks: Callable[[], Iterator[bytes]] | None = None


def file_layer(path: Path) -> Layer:
    """A layer that is a file."""
    digest = hashlib.sha256()
    for chunk in _read(path):
        digest.update(chunk)
    return Layer(digest=f"sha256:{digest.hexdigest()}", size=path.stat().st_size, chunks=lambda: _read(path))


def pack_files(folder: Path, files: Sequence[str], inside: str, stream: Any) -> None:
    """Write these files of a folder, and the folders above them, as members that lie below the absolute path `inside`.

    stream: anything with `write`; it gets no end of an archive
    """
    above = {str(parent) for name in files for parent in Path(name).parents if parent != Path()}
    parts = inside.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        stream.write(_folder("/".join(parts[:count])).tobuf(tarfile.GNU_FORMAT))
    for name in sorted({*files, *above}):
        _add(stream, folder / name, f"{inside.strip('/')}/{name}")


def image_config(layers: Sequence[Layer], *, variables: Mapping[str, str], labels: Mapping[str, str]) -> bytes:
    """The configuration of an image; its digest is the image's id."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": _EPOCH,
        "config": {
            "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
            "Labels": dict(sorted(labels.items())),
            "Cmd": ["/bin/sh"],
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "history": [{"created": _EPOCH, "created_by": "run-local"} for _ in layers],
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def archive(config: bytes, tag: str, layers: Sequence[Layer]) -> Iterator[bytes]:
    """The chunks of an archive to load, with the layers that can be read."""
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    files = [f"{layer.digest.removeprefix('sha256:')}/layer.tar" for layer in layers]
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": files}]).encode()
    for member, data in ((name, config), ("manifest.json", manifest)):
        yield _header(member, len(data)) + data + bytes(-len(data) % 512)
    for layer, member in zip(layers, files, strict=True):
        if layer.chunks:
            yield _header(member, layer.size)
            yield from layer.chunks()
            yield bytes(-layer.size % 512)
    yield END


def unpack_layers(saved: Path, folder: Path) -> list[Layer]:
    """The layers of an archive that an engine saved, each as a file in a folder."""
    with tarfile.open(saved) as bundle:
        listed = bundle.extractfile("manifest.json")
        assert listed is not None
        names = json.load(listed)[0]["Layers"]
        layers = []
        for number, name in enumerate(names):
            source = bundle.extractfile(name)
            assert source is not None
            target = folder / f"base-{number}.tar"
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
            layers.append(file_layer(target))
    return layers


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _add(stream: Any, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif path.is_dir():
        info = _folder(name)
    else:
        info.size = path.stat().st_size
        info.mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
    stream.write(info.tobuf(tarfile.GNU_FORMAT))
    if info.isreg():
        for chunk in _read(path):
            stream.write(chunk)
        stream.write(bytes(-info.size % 512))


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
