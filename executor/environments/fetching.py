"""Brings the archives of a lock to this machine: checked when they come, and whenever they are used.

One that is damaged is set aside in `packages/quarantine` and fetched again. Runs in the installer's process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rattler
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from executor.environments.archives import Archive, archive_path, file_digest, local_path
from executor.environments.settings import Settings, mirrored
from executor.errors import BuildError

_CHUNK = 2**20
_AT_ONCE = 6
_PATIENCE_S = (10, 30)


def url_mirrors(settings: Settings) -> dict[str, str]:
    """Beginning of an address → what stands in for it here."""
    published = {name: f"{str(rattler.Channel(name).base_url).rstrip('/')}/" for name in settings.mirrors}
    found = {published[name]: f"{place}/" for name, place in settings.mirrors.items()}
    if settings.alias:
        found[str(rattler.Channel("any").base_url).rstrip("/").removesuffix("any")] = f"{settings.alias}/"
    return found


class Fetcher:
    """Fetches archives.

    mirrors:  beginnings of URLs → what stands in for them
    certificates: a file of those to trust, or None for the usual ones
    credentials:  host → user and password
    note:     told in words what is out of the ordinary
    progress: told the bytes that came so far, the bytes of all (0: not known yet), and what is being fetched
    """

    def __init__(
        self,
        home: Path,
        *,
        mirrors: Mapping[str, str],
        certificates: str | None,
        credentials: Mapping[str, tuple[str, str]],
        note: Callable[[str], None],
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._home, self._mirrors, self._credentials = home, mirrors, credentials
        self._note, self._progress = note, progress
        self._came, self._total = 0, 0
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=_AT_ONCE, max_retries=Retry(total=3, backoff_factor=0.5))
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)
        if certificates:
            self._session.verify = certificates

    def fetch(self, archives: Sequence[Archive]) -> dict[str, Path]:
        """Verified files, by the URL of their archive. Raises `BuildError` where one cannot be had as it was locked."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            done = [pool.submit(self._one, archive) for archive in archives]
            try:
                return {archive.url: each.result() for archive, each in zip(archives, done, strict=True)}
            finally:
                pool.shutdown(cancel_futures=True)
                self._session.close()

    def _one(self, archive: Archive) -> Path:
        target = archive_path(archive, self._home)
        if target.exists():
            if file_digest(target) == archive.sha256:
                return target
            self._set_aside(target)
            self._note(f"{archive.file_name} was damaged on this disk: fetching it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, half = tempfile.mkstemp(dir=target.parent, prefix="half-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest = self._copy(archive, mirrored(archive.url, self._mirrors), file)
            if digest != archive.sha256:
                raise BuildError(
                    f"the archive of `{archive.name}` is not the one that was locked",
                    why=f"{archive.url} has sha256 {digest}, the lock says {archive.sha256}",
                    hint="if the lock is as it was committed, whoever serves this file has changed it",
                )
            Path(half).replace(target)
        finally:
            Path(half).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there is something in it
                target.parent.rmdir()
        return target

    def _copy(self, archive: Archive, url: str, file: Any) -> str:
        """Write what is at `url` to a file; answers with its sha256."""
        digest = hashlib.sha256()
        source = local_path(url)
        if source:
            if not source.is_file():
                raise BuildError(
                    f"the archive of `{archive.name}` is gone",
                    why=str(source),
                    hint="a lock that names files holds on the machine that it was made on; `run-local lock` makes another",
                )
            with source.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            return digest.hexdigest()
        try:
            with self._session.get(url, stream=True, timeout=_PATIENCE_S, auth=self._login(url)) as answer:
                answer.raise_for_status()
                self._total += int(answer.headers.get("Content-Length", 0))
                for chunk in answer.iter_content(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    self._came += len(chunk)
                    self._progress(self._came, self._total, archive.file_name)
        except requests.RequestException as exc:
            raise BuildError(
                f"the archive of `{archive.name}` cannot be fetched",
                why=f"{url}: {exc}",
                hint="is the network up? a lock from another site may name servers that are not reached from here",
            ) from exc
        return digest.hexdigest()

    def _login(self, url: str) -> tuple[str, str] | None:
        return self._credentials.get(urllib.parse.urlsplit(url).hostname or "")

    def _set_aside(self, damaged: Path) -> None:
        quarantine = self._home / "packages" / "quarantine"
        quarantine.mkdir(parents=True, exist_ok=True)
        damaged.rename(quarantine / f"{time.time_ns()}-{damaged.name}")
