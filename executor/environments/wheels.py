"""A wheel as a conda package: the files where an installer would put them, and what it depends on in conda's words.

A wheel for any platform becomes a package for any platform, whose scripts are made when it is installed; others are for
linux-64. conda has no extras, so `requests[socks]` becomes a dependency on `requests-with-socks`, a package that holds
nothing and depends on what the extra asks for. The same wheel gives the same package, to the byte.
"""

from __future__ import annotations

import base64
import configparser
import csv
import functools
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import IO, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from executor.environments.condapackage import FORMAT, PLACEHOLDER, Entry, entry_of, write_package
from executor.environments.translation import as_match_spec, conda_name, digest_of_names
from executor.errors import LockError

_RECIPE = 1
_OLD_MANYLINUX = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17"}
_NOT_TAKEN = frozenset({"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED", "direct_url.json"})
_SUMMARY = "made by run-local from a wheel"

_START = """\
#!{python}
import sys

from {module} import {name}

if __name__ == "__main__":
    sys.exit({call}())
"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A wheel, and where it is or will be.

    sha256: of the file; python: the whole version of the Python that it is for
    """

    path: Path
    sha256: str
    python: str

    @property
    def name(self) -> str:
        """The conda name of the package that it becomes."""
        return conda_name(self._parsed[0])

    @property
    def version(self) -> Version:
        """Its version, with the local part (such as `+cpu`) if it has one."""
        return self._parsed[1]

    @property
    def tags(self) -> frozenset[Tag]:
        """The platforms that it is for."""
        return self._parsed[2]

    @functools.cached_property
    def _parsed(self) -> tuple[str, Version, frozenset[Tag]]:
        try:
            name, version, _, tags = parse_wheel_filename(self.path.name)
        except InvalidWheelFilename as exc:
            raise LockError(f"`{self.path.name}` is no wheel", why=str(exc)) from exc
        return name, version, tags

    @functools.cached_property
    def metadata(self) -> Message:
        """What it says about itself."""
        with zipfile.ZipFile(self.path) as archive:
            return BytesParser().parsebytes(archive.read(f"{_info_folder(self, archive)}/METADATA"))

    @property
    def minor(self) -> str:
        """The Python that it is for, as in `3.11`."""
        return ".".join(self.python.split(".")[:2])


def identity(wheel: Source, name: str) -> dict[str, Any]:
    """Name, version and build of a package made of a wheel; the build changes when its bytes may."""
    made_from = [_RECIPE, FORMAT, digest_of_names(), wheel.sha256, wheel.python, name]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:8]
    local = f"{wheel.version.local.replace('.', '_')}_" if wheel.version.local else ""
    build = f"{local}py{wheel.minor.replace('.', '')}h{digest}_0"
    return {"name": name, "version": wheel.version.public, "build": build, "build_number": 0}


def convert(wheel: Source, folder: Path) -> dict[str, Any]:
    """Write the package of a wheel below the folder of a channel; answers with its record, with digests."""
    record = _record(wheel, wheel.name, [*_platform(wheel), *_dependencies(wheel)], _Contents.noarch(wheel))
    with zipfile.ZipFile(wheel.path) as archive:
        contents = _Contents(wheel, archive)
        summary = str(wheel.metadata.get("Summary") or _SUMMARY)
        return write_package(folder, record, contents.entries(), summary=summary, entry_points=contents.entry_points())


def convert_extra(name: str, extra: str, wheel: Source, folder: Path) -> dict[str, Any]:
    """The same for a package that stands for an extra of it, and holds nothing."""
    plain = _dependencies(wheel)
    more = [each for each in _dependencies(wheel, extra) if each not in plain]
    return _write_empty(wheel, name, more, folder)


def convert_alias(name: str, wheel: Source, folder: Path) -> dict[str, Any]:
    """The same for another name that conda has for it."""
    return _write_empty(wheel, name, [], folder)


def _write_empty(wheel: Source, name: str, depends: list[str], folder: Path) -> dict[str, Any]:
    record = _record(wheel, name, [f"{wheel.name} =={wheel.version.public}", *depends], "generic")
    return write_package(folder, record, [], summary=f"{name}, {_SUMMARY}")


def extras_of(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The extras that a record depends on: the conda name of the package, and the extra."""
    names = (depend.split()[0] for depend in record["depends"])
    return [(package, extra) for name in names for package, with_, extra in [name.partition("-with-")] if with_]


# -- what the package says ---------------------------------------------------------------------------------------------


def _record(wheel: Source, name: str, depends: list[str], noarch: str | None) -> dict[str, Any]:
    record = {**identity(wheel, name), "depends": depends}
    license_text = str(wheel.metadata.get("License-Expression") or wheel.metadata.get("License") or "")
    if license_text and "\n" not in license_text:
        record["license"] = license_text
    if noarch:
        return {**record, "subdir": "noarch", "noarch": noarch}
    return {**record, "subdir": "linux-64", "arch": "x86_64", "platform": "linux"}


def _platform(wheel: Source) -> list[str]:
    """What the package asks of Python and of the C library."""
    major, minor = wheel.minor.split(".")
    needed = [f"python >={wheel.minor},<{major}.{int(minor) + 1}.0a0"]
    libraries = [library for tag in wheel.tags if (library := _glibc(tag.platform))]
    if libraries:
        oldest = min(libraries, key=lambda text: tuple(map(int, text.split("."))))
        needed.append(f"__glibc >={oldest}")
    return needed


def _glibc(platform: str) -> str:
    beginning = platform.partition("_")[0]
    if beginning in _OLD_MANYLINUX:
        return _OLD_MANYLINUX[beginning]
    found = re.match(r"manylinux_(\d+)_(\d+)_", platform)
    return f"{found[1]}.{found[2]}" if found else ""


def _dependencies(wheel: Source, extra: str = "") -> list[str]:
    """What a wheel needs on linux-64, as conda writes it; `extra` adds what that one asks for."""
    found = []
    for text in wheel.metadata.get_all("Requires-Dist", []):
        try:
            requirement = Requirement(str(text))
        except InvalidRequirement as exc:
            raise LockError(f"`{wheel.path.name}` has a requirement that makes no sense", why=str(exc)) from exc
        if requirement.marker and not requirement.marker.evaluate(_target(wheel.python, extra)):
            continue
        spec = as_match_spec(requirement)
        name, _, versions = spec.partition(" ")
        found.append(spec)
        found += [f"{name}-with-{canonicalize_name(each)} {versions}".strip() for each in requirement.extras]
    return sorted(set(found))


def _target(python: str, extra: str) -> dict[str, str]:
    """What markers ask about: the Python that the package is for, and any Linux."""
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "platform_python_implementation": "CPython",
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
        "extra": extra,
    }


# -- what the package holds --------------------------------------------------------------------------------------------


def _info_folder(wheel: Source, archive: zipfile.ZipFile) -> str:
    found = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
    if len(found) != 1:
        raise LockError(f"`{wheel.path.name}` is no wheel", why=f"it has {len(found)} files of metadata")
    return found[0].partition("/")[0]


class _Contents:
    """The files of an open wheel, where they belong."""

    def __init__(self, wheel: Source, archive: zipfile.ZipFile) -> None:
        self._wheel, self._archive = wheel, archive
        self._any = self.noarch(wheel) is not None
        self._site = "site-packages" if self._any else f"lib/python{wheel.minor}/site-packages"
        self._bin = "python-scripts" if self._any else "bin"
        members = [member for member in archive.infolist() if not member.is_dir()]
        self._info = _info_folder(wheel, archive)
        self._data = f"{self._info.removesuffix('.dist-info')}.data"
        self._members = {member.filename: member for member in members if self._is_taken(member.filename)}

    @staticmethod
    def noarch(wheel: Source) -> str | None:
        """`python` for a package of a wheel for any platform."""
        return "python" if all(tag.platform == "any" for tag in wheel.tags) else None

    def entries(self) -> list[Entry]:
        """Every file of the package."""
        found = {}
        for name, member in self._members.items():
            entry = self._entry(name, member)
            found[entry.path] = entry
        if not self._any:
            for script in self.entry_points():
                entry = self._script(script)
                found[entry.path] = entry
        record = entry_of(f"{self._site}/{self._info}/RECORD", self._record().encode())
        return [*found.values(), record]

    def entry_points(self) -> list[str]:
        """The scripts that call a function, as `name = module:function`."""
        member = f"{self._info}/entry_points.txt"
        if member not in self._members:
            return []
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment]
        parser.read_string(self._archive.read(member).decode())
        found = {
            name: target.partition("[")[0].strip()
            for section in ("console_scripts", "gui_scripts")
            if parser.has_section(section)
            for name, target in parser.items(section)
        }
        return [f"{name} = {target}" for name, target in sorted(found.items())]

    def _is_taken(self, name: str) -> bool:
        if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
            raise LockError(f"`{self._wheel.path.name}` is no wheel", why=f"`{name}` in it leads out of the package")
        folder, _, last = name.rpartition("/")
        return not (folder == self._info and last in _NOT_TAKEN) and not name.endswith(".pyc")

    def _entry(self, name: str, member: zipfile.ZipInfo) -> Entry:
        path = self._place(name)
        executable = bool(member.external_attr >> 16 & 0o111)
        if path.startswith(f"{self._bin}/") and name.startswith(f"{self._data}/scripts/"):
            text = self._archive.read(member)
            if text.startswith(b"#!python"):
                _, newline, rest = text.partition(b"\n")
                data = f"#!{PLACEHOLDER}/bin/python{self._wheel.minor}".encode() + newline + rest
                return entry_of(path, data, executable=True, prefix=True)
            executable = True
        return Entry(path=path, size=member.file_size, read=self._reader(member), executable=executable)

    def _reader(self, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
        return lambda: self._archive.open(member)

    def _place(self, name: str) -> str:
        """Where a file of the wheel goes."""
        if not name.startswith(f"{self._data}/"):
            return f"{self._site}/{name}"
        scheme, _, rest = name.removeprefix(f"{self._data}/").partition("/")
        distribution = self._info.partition("-")[0]
        places = {
            "purelib": f"{self._site}/{rest}",
            "platlib": f"{self._site}/{rest}",
            "scripts": f"{self._bin}/{rest}",
            "headers": f"include/python{self._wheel.minor}/{distribution}/{rest}",
            "data": rest,
        }
        if scheme not in places:
            raise LockError(f"`{self._wheel.path.name}` is no wheel", why=f"nothing is known of a place `{scheme}`")
        return places[scheme]

    def _script(self, entry_point: str) -> Entry:
        name, _, target = entry_point.partition(" = ")
        module, _, call = target.partition(":")
        python = f"{PLACEHOLDER}/bin/python{self._wheel.minor}"
        text = _START.format(
            python=python, module=module.strip(), name=call.strip().partition(".")[0], call=call.strip()
        )
        return entry_of(f"bin/{name}", text.encode(), executable=True, prefix=True)

    def _record(self) -> str:
        """RECORD, which says what is installed, with the places that the files go to."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerows(sorted(self._rows()))
        return lines.getvalue()

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        for name, member in self._members.items():
            path = self._installed(self._place(name))
            changed = path.startswith("../")
            digest = "" if changed else f"sha256={self._digest(member)}"
            yield path, digest, "" if changed else str(member.file_size)
        for script in self.entry_points():
            yield f"../../../bin/{script.partition(' = ')[0]}", "", ""
        yield f"{self._info}/RECORD", "", ""

    def _installed(self, path: str) -> str:
        """A path as it will be from `site-packages`."""
        if path.startswith(f"{self._site}/"):
            return path.removeprefix(f"{self._site}/")
        if path.startswith(f"{self._bin}/"):
            return f"../../../bin/{path.removeprefix(f'{self._bin}/')}"
        return f"../../../{path}"

    def _digest(self, member: zipfile.ZipInfo) -> str:
        digest = hashlib.sha256()
        with self._archive.open(member) as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
