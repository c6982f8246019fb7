"""Layers and images as files: deterministic tars, and the archive that an engine loads.

The same files give the same bytes: names sorted, no owners, no times. The archive is `docker save`'s format, version 1.2
of the Docker image specification; an engine that has a layer already does not need its file in there.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EPOCH = "1970-01-01T00:00:00Z"
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer: its digest, and the file that holds it, or None where the engine has it."""

    digest: str
    file: Path | None


class _Hashing:
    """A file for writing that knows the digest of what went through."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        written: int = self._file.write(data)
        return written


def pack_layer(folder: Path, inside: str, target: Path) -> Layer:
    """Pack a folder as a layer that puts its contents at the absolute path `inside`."""
    with target.open("wb", _CHUNK) as file:
        stream = _Hashing(file)
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_CHUNK) as archive:  # type: ignore[call-overload]
            parts = inside.strip("/").split("/")
            for count in range(1, len(parts) + 1):
                archive.addfile(_folder("/".join(parts[:count])))
            for path in sorted(folder.rglob("*")):
                _add(archive, path, f"{inside.strip('/')}/{path.relative_to(folder)}")
    return Layer(digest=f"sha256:{stream.digest.hexdigest()}", file=target)


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
    """The chunks of an archive to load, with the layers that have a file."""
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    files = [f"{layer.digest.removeprefix('sha256:')}/layer.tar" for layer in layers]
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": files}]).encode()
    for member, data in ((name, config), ("manifest.json", manifest)):
        yield _header(member, len(data)) + data + bytes(-len(data) % 512)
    for layer, member in zip(layers, files, strict=True):
        if layer.file:
            size = layer.file.stat().st_size
            yield _header(member, size)
            with layer.file.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
            yield bytes(-size % 512)
    yield bytes(1024)


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
            digest = hashlib.sha256()
            with target.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            layers.append(Layer(digest=f"sha256:{digest.hexdigest()}", file=target))
    return layers


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        archive.addfile(info)
    elif path.is_dir():
        archive.addfile(_folder(name))
    elif path.is_file():
        info.size = path.stat().st_size
        info.mode = 0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o111 else 0o644
        with path.open("rb") as file:
            archive.addfile(info, file)
