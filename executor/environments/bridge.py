"""What the bridge channel has for one request: conda-named packages, made of wheels when they are first asked for.

PyPI's solver decides which wheels; conda's gets to see exactly those, as packages, and `python` and `pip` of the interpreter
at hand. So the answer depends on the request and on PyPI, and not on what else the channel holds. Runs in the solver's
process.
"""

from __future__ import annotations

import functools
import re
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rattler

from executor.data.store import full_disk
from executor.environments import channel, indexes, wheels
from executor.environments.archives import Archive, archive_path
from executor.environments.channel import Record
from executor.environments.condapackage import file_name
from executor.environments.fetching import Fetcher
from executor.environments.translation import Asked, conda_name, match_spec, not_found, understand
from executor.errors import LockError

_TELL_S = 0.2
_NOT_FOUND = re.compile(r"Because (\S+) was not found in the (?:package registry|provided package locations)")
_NO_WHEEL = re.compile(r"^hint: Wheels are required for `([^`]+)`", re.MULTILINE)


class Bridge:
    """Serves requests from the bridge channel of a home.

    resolve: the wheels that lines of requirements need, all of them
    refuse: an error in words for people, made of a reason
    note: told in words what takes a while
    """

    def __init__(
        self,
        home: Path,
        *,
        resolve: Callable[[Sequence[str]], Sequence[Archive]],
        refuse: Callable[[str], LockError],
        note: Callable[[str], None],
    ) -> None:
        self._home, self._resolve, self._refuse, self._note = home, resolve, refuse, note
        self._told = 0.0
        self._folder = channel.make_channel(home, self._wait)
        self._python, self._pip = channel.beginnings(self._folder)

    def serve(self, requirements: Sequence[str]) -> Served:
        """The packages for these conda requirements, and the requirements as they are in the channel."""
        asked = [each for text in requirements if (each := self._understand(text))]
        for each in asked:
            if each.build:
                self._note(f"`{each.text}`: packages made from PyPI have no such builds, any is taken")
        archives = self._resolve([each.line for each in asked]) if asked else []
        sources = [self._source(archive) for archive in archives]
        with channel.writing(self._folder, self._home, self._wait), full_disk("packages cannot be made"):
            making = _Making(self._folder, dict(zip(sources, archives, strict=True)), self._fetch, self._note)
            records = making.records(asked)
        mine = [self._python, *([] if any(each["name"] == "pip" for each in records) else [self._pip])]
        specs = [text for text in requirements if match_spec(text).name.normalized == "python"]
        if any(match_spec(text).name.normalized == "pip" for text in requirements):
            specs.append("pip")
        return Served(self._folder, [*mine, *records], [*specs, *(each.conda for each in asked)])

    def _understand(self, text: str) -> Asked | None:
        """A requirement that a wheel has to satisfy, or None where the channel does from the beginning."""
        spec = match_spec(text)
        name = spec.name.normalized
        if name == "python" and not spec.matches(_solvable(self._python, self._folder)):
            raise self._refuse(
                f"no conda channel answers, and Python {self._python['version']} of this machine is not `{text}`"
            )
        if name == "python" or (name == "pip" and spec.matches(_solvable(self._pip, self._folder))):
            return None
        return understand(text)

    def _source(self, archive: Archive) -> wheels.Source:
        path = archive_path(archive, self._home)
        return wheels.Source(path=path, sha256=archive.sha256, python=self._python["version"])

    def _fetch(self, archives: Sequence[Archive]) -> None:
        fetcher = Fetcher(
            self._home,
            mirrors={},
            certificates=indexes.certificates(),
            credentials=indexes.credentials(),
            note=self._note,
            progress=self._progress,
        )
        fetcher.fetch(archives)

    def _progress(self, came: int, total: int, name: str) -> None:
        if total and time.monotonic() - self._told > _TELL_S:
            self._told = time.monotonic()
            self._note(f"downloading {name}, {came / 2**20:.0f} of {total / 2**20:.0f} MiB")

    def _wait(self) -> None:
        self._note("another run-local makes packages")


class Served:
    """A source of packages for rattler's solver, and what to ask of it."""

    def __init__(self, folder: Path, records: Sequence[Record], specs: list[str]) -> None:
        self.specs = specs
        self._records = [_solvable(record, folder) for record in records]

    async def fetch_package_records(self, platform: Any, name: Any) -> list[Any]:
        """The packages of one name for one platform."""
        return [
            each
            for each in self._records
            if each.name.normalized == name.normalized and str(each.subdir) == str(platform)
        ]

    def package_names(self, platform: Any) -> list[str]:
        """The names of all packages for one platform."""
        return [each.name.normalized for each in self._records if str(each.subdir) == str(platform)]


class _Making:
    """Finds the packages of wheels in a channel, and makes those that it lacks."""

    def __init__(
        self,
        folder: Path,
        archives: Mapping[wheels.Source, Archive],
        fetch: Callable[[Sequence[Archive]], None],
        note: Callable[[str], None],
    ) -> None:
        self._folder, self._archives, self._fetch, self._note = folder, archives, fetch, note
        self._stored = {file_name(record): record for record in channel.read_index(folder)}
        self._by_name = {source.name: source for source in archives}

    def records(self, asked: Sequence[Asked]) -> list[Record]:
        """The records of all wheels, of the extras that they ask for, and of other names that were asked for."""
        missing = [source for source in self._archives if not self._find(source, source.name)]
        if missing:
            self._note(f"wheels to make conda packages of: {len(missing)}")
            self._fetch([self._archives[source] for source in missing])
        found = {name: self._package(source, name, wheels.convert) for name, source in self._by_name.items()}
        for each in asked:
            if each.conda not in found:
                source = self._by_name[conda_name(each.pypi)]
                found[each.conda] = self._package(
                    source, each.conda, functools.partial(wheels.convert_alias, each.conda)
                )
        waiting = list(found.values())
        while waiting:
            for package, extra in wheels.extras_of(waiting.pop()):
                name = f"{package}-with-{extra}"
                if name not in found and package in self._by_name:
                    make = functools.partial(wheels.convert_extra, name, extra)
                    found[name] = self._package(self._by_name[package], name, make)
                    waiting.append(found[name])
        return list(found.values())

    def _find(self, source: wheels.Source, name: str) -> Record | None:
        record = self._stored.get(file_name(wheels.identity(source, name)))
        return record if record and channel.is_whole(self._folder, record) else None

    def _package(self, source: wheels.Source, name: str, make: Callable[[wheels.Source, Path], Record]) -> Record:
        stored = self._find(source, name)
        if stored:
            return stored
        if not source.path.exists():
            self._fetch([self._archives[source]])
        self._note(f"making {name} {source.version}")
        try:
            record = make(source, self._folder)
        except zipfile.BadZipFile as exc:
            raise LockError(f"`{source.path.name}` is no wheel", why=str(exc)) from exc
        channel.add(self._folder, [record])
        return record


def explain(reason: str, requirements: Sequence[str]) -> LockError | None:
    """What PyPI's solver says of packages that cannot be made for these conda requirements, in words that help here."""
    unknown, built = _NOT_FOUND.search(reason), _NO_WHEEL.search(reason)
    if unknown:
        asked = [each for each in map(understand, requirements) if each.pypi == unknown[1]]
        if asked:
            return not_found(asked[0])
    if built:
        return LockError(
            f"`{conda_name(built[1])}` cannot be had without a conda channel",
            why=f"no conda channel answers, and of `{built[1]}` PyPI has no wheel that fits, only source to build it from",
            hint=f"ask for a version that has a wheel; or build one, and list it under `pip:` as "
            f"`{built[1]} @ file:///…/it.whl`",
        )
    return None


def _solvable(record: Record, folder: Path) -> Any:
    """A package of a channel as rattler's solver knows it."""
    known = rattler.PackageRecord(
        name=record["name"],
        version=record["version"],
        build=rattler.BuildString(record["build"]),
        build_number=record["build_number"],
        subdir=record["subdir"],
        noarch=record.get("noarch"),
        depends=record["depends"],
        sha256=bytes.fromhex(record["sha256"]),
        md5=bytes.fromhex(record["md5"]),
        size=record["size"],
        python_site_packages_path=record.get("python_site_packages_path"),
    )
    url = channel.package_path(folder, record).as_uri()
    return rattler.RepoDataRecord(known, file_name(record), url, folder.as_uri())
