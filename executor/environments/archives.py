"""The archives of locked packages: one folder, each file under its digest, and none that is not what its name says.

`executor.environments.fetching` brings them; what is here needs no network.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One archive of a lock."""

    name: str
    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of its URL, which installers read name, version and platform from."""
        return urllib.parse.unquote(self.url.rpartition("/")[2].partition("#")[0].partition("?")[0])


def archive_path(archive: Archive, home: Path) -> Path:
    """Where an archive is, or will be."""
    return home / "packages" / "archives" / archive.sha256 / archive.file_name


def missing(archives: Iterable[Archive], home: Path) -> list[Archive]:
    """Those that would have to be fetched; files of this machine are not among them."""
    return [each for each in archives if not archive_path(each, home).exists() and not local_path(each.url)]


def local_path(url: str) -> Path | None:
    """The file of this machine that a URL names, or None."""
    parts = urllib.parse.urlsplit(url)
    return Path(urllib.parse.unquote(parts.path)) if parts.scheme == "file" else None


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
