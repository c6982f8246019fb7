"""`python -m executor.environments.install`: packages of a lock in a folder, in a process of its own.

Their archives are fetched and verified, conda packages are installed by py-rattler, wheels by uv; scripts and text already
name the final prefix, wherever the folder is. Every file is compared with what its package says of it. Then all is
byte-compiled, and what differs from one machine to the next is taken out. For an image each package then becomes a part
of a layer.

Request, as JSON on stdin: packages (of the lock), folder (empty, on the file system of the cache), prefix (its final
place), home, parts (sha256 of a package → key of the part to make of it; or null, where the folder is what is
wanted). Without a folder the archives are fetched, and that is all. Answer and progress as in `solve`.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import rattler
import uv

from executor import machine
from executor.environments import indexes, layers
from executor.environments.archives import Archive, file_digest, missing
from executor.environments.fetching import Fetcher, url_mirrors
from executor.environments.settings import read_settings
from executor.errors import BuildError, RunLocalError

_LONGEST_SHEBANG = 100
_NOT_COMPILED = frozenset({"test", "tests", "lib2to3"})
_NOT_THE_SAME_EVERYWHERE = ("direct_url.json", "uv_cache.json", "REQUESTED", "INSTALLER")


class Installer:
    """Carries out one request."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._folder, self._prefix = Path(request["folder"] or ""), str(request["prefix"])
        self._home = Path(request["home"])
        self._parts: Mapping[str, str] | None = request["parts"]
        packages = request["packages"]
        self._python = next(each["version"] for each in packages if each["name"] == "python")
        wanted = [each for each in packages if self._is_wanted(each)]
        self._conda = [package for package in wanted if package["manager"] == "conda"]
        self._pip = [package for package in wanted if package["manager"] == "pip"]
        self._caches = self._home / "packages"

    def install(self) -> None:
        """Fill the folder, and make the parts that are asked for."""
        packages = [*self._conda, *self._pip]
        files = self.fetch()
        _say("install", f"installing {_count(packages)}")
        self._unpack(files)
        damaged = self._damaged()
        if damaged:  # what a cache holds was changed through a hard link to it: unpack the archives anew
            _say("install", f"the cache was changed ({damaged[0]}, {len(damaged)} files): unpacking anew")
            self._caches = self._folder.with_name("caches")
            shutil.rmtree(self._folder)
            self._folder.mkdir()
            self._unpack(files)
            if damaged := self._damaged():
                raise BuildError("packages are not what they say they hold", why="\n".join(damaged[:20]))
            self._replace_caches()
        owners = self._owners()
        self._name_final_prefix()
        self._leave_out_what_differs()
        _say("compile", "byte-compiling")
        self._compile(owners)
        if self._parts is not None:
            self._make_parts(owners)

    def _is_wanted(self, package: Mapping[str, Any]) -> bool:
        """Python is, always: it is what the others are installed with."""
        return self._parts is None or package["name"] == "python" or package["sha256"] in self._parts

    def fetch(self) -> dict[str, Path]:
        """Have the archives of the packages here, each as its lock says: URL → file."""
        packages = [*self._conda, *self._pip]
        archives = [Archive(name=each["name"], url=each["url"], sha256=each["sha256"]) for each in packages]
        away = missing(archives, self._home)
        if away:
            _say("download", f"downloading {len(away)} archive{'s' * (len(away) != 1)}", 0.0)
        fetcher = Fetcher(
            self._home,
            mirrors=url_mirrors(read_settings(self._home)),
            certificates=indexes.certificates() if away else None,
            credentials=indexes.credentials() if away else {},
            note=lambda text: _say("download", text),
            progress=_Download(),
        )
        return fetcher.fetch(archives)

    def _unpack(self, files: Mapping[str, Path]) -> None:
        asyncio.run(self._install_conda(files))
        if self._pip:
            self._install_wheels(files)

    async def _install_conda(self, files: Mapping[str, Path]) -> None:
        await rattler.install(
            [conda_record(package, files[package["url"]].as_uri()) for package in self._conda],
            target_prefix=self._folder,
            cache_dir=self._caches / "conda",
            alternative_target_prefix=self._prefix,
            show_progress=False,
        )

    def _install_wheels(self, files: Mapping[str, Path]) -> None:
        lines = [f"{each['name']} @ {files[each['url']].as_uri()} --hash=sha256:{each['sha256']}" for each in self._pip]
        requirements = self._folder / "requirements.txt"
        requirements.write_text("\n".join(lines))
        done = machine.run(
            [
                *(uv.find_uv_bin(), "pip", "install", "--quiet", "--no-config", "--no-deps", "--offline"),
                *("--python", str(self._folder / "bin/python"), "--require-hashes", "--only-binary", ":all:"),
                *("--link-mode", "hardlink", "--cache-dir", str(self._caches / "uv"), "-r", str(requirements)),
            ]
        )
        requirements.unlink()
        if done.returncode:
            raise BuildError("packages cannot be installed", why=done.stderr.strip()[-2000:])

    def _replace_caches(self) -> None:
        """Put the caches that were filled anew in the place of those that were changed."""
        for name in ("conda", "uv"):
            old, new = self._home / "packages" / name, self._caches / name
            if new.exists():
                shutil.rmtree(self._folder.with_name(f"old-{name}"), ignore_errors=True)
                if old.exists():
                    old.rename(self._folder.with_name(f"old-{name}"))
                new.rename(old)

    # -- which file is whose, and as it should be ----------------------------------------------------------------------

    def _damaged(self) -> list[str]:
        """Files that are missing, or are not what the record of their package says."""
        found = []
        for path, digest in [*self._conda_digests(), *self._wheel_digests()]:
            file = self._folder / path
            if not file.exists() or file_digest(file) != digest:
                found.append(path)
        return found

    def _conda_digests(self) -> Iterator[tuple[str, str]]:
        for record in self._conda_records().values():
            for entry in record.get("paths_data", {}).get("paths", []):
                plain = entry.get("path_type") == "hardlink" and not entry.get("prefix_placeholder")
                digest = entry.get("sha256_in_prefix") or (entry.get("sha256") if plain else None)
                if plain and digest:
                    yield entry["_path"], digest

    def _wheel_digests(self) -> Iterator[tuple[str, str]]:
        for record in self._wheel_records().values():
            for path, digest in record:
                if digest.startswith("sha256="):
                    yield path, base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "==").hex()

    def _owners(self) -> dict[str, list[str]]:
        """Package → the files that it brought, by path from the folder; folders of ours and records are nobody's."""
        owners = {
            name: [path for path in record["files"] if _stays(path)] for name, record in self._conda_records().items()
        }
        for name, entries in self._wheel_records().items():
            owners[name] = [path for path, _ in entries if _stays(path)]
        return owners

    def _conda_records(self) -> dict[str, dict[str, Any]]:
        records = [json.loads(path.read_bytes()) for path in sorted((self._folder / "conda-meta").glob("*.json"))]
        return {record["name"]: record for record in records}

    def _wheel_records(self) -> dict[str, list[tuple[str, str]]]:
        """Package → its files and their digests, from RECORD; conda packages may bring one, too, and are no wheels."""
        names = {_normal(package["name"]): package["name"] for package in self._pip}
        found = {}
        for record in sorted(self._folder.glob("lib/python*/site-packages/*.dist-info/RECORD")):
            name = names.get(_normal(record.parent.name.split("-")[0]))
            if name:
                site = record.parent.parent
                with record.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.reader(file) if len(row) == 3]
                found[name] = [(_relative(site / path, self._folder), digest) for path, digest, _ in rows]
        return found

    def _name_final_prefix(self) -> None:
        """Let scripts start the interpreter at its final place."""
        here, there = os.fsencode(self._folder), os.fsencode(self._prefix)
        for script in (self._folder / "bin").iterdir():
            if script.is_file() and not script.is_symlink():
                data = script.read_bytes()
                if data.startswith(b"#!") and here in data:
                    _rewrite(script, _with_plain_shebang(data.replace(here, there), there))

    def _leave_out_what_differs(self) -> None:
        shutil.rmtree(self._folder / "conda-meta", ignore_errors=True)
        (self._folder / "CACHEDIR.TAG").unlink(missing_ok=True)
        (self._folder / ".lock").unlink(missing_ok=True)
        for record in self._folder.glob("lib/python*/site-packages/*.dist-info/RECORD"):
            for name in _NOT_THE_SAME_EVERYWHERE:
                record.with_name(name).unlink(missing_ok=True)
            _rewrite(record, _stable_record(record.read_text()).encode())

    def _compile(self, owners: Mapping[str, list[str]]) -> None:
        """Compile every module that is wanted, on all cores, each process tied to this one.

        Packages hold files for other versions of Python, which do not compile here; that is no failure. Files are named
        from within the folder, so that what is left out does not depend on where it is.
        """
        mine = [name for name in owners if self._parts is None or name in self._names_of_parts()]
        modules = sorted(
            path
            for name in mine
            for path in owners[name]
            if path.startswith("lib/python") and path.endswith(".py") and not _NOT_COMPILED & {*Path(path).parts}
        )
        options = ["-q", "-f", "--invalidation-mode", "unchecked-hash", "-p", self._prefix]
        python = str(self._folder / "bin/python")
        lists, processes = [], []
        for number in range(cores := max(1, int(machine.cores()))):
            lists.append(self._folder / f"compile-{number}")
            lists[-1].write_text("\n".join(modules[number::cores]))
            command = [python, "-I", "-B", "-m", "compileall", *options, "-i", lists[-1].name]
            quiet = subprocess.DEVNULL
            processes.append(machine.spawn(command, cwd=self._folder, stdout=quiet, stderr=quiet))
        for process, listed in zip(processes, lists, strict=True):
            process.wait()
            listed.unlink()

    def _names_of_parts(self) -> dict[str, Mapping[str, Any]]:
        parts = self._parts or {}
        return {each["name"]: each for each in [*self._conda, *self._pip] if each["sha256"] in parts}

    def _make_parts(self, owners: Mapping[str, list[str]]) -> None:
        """Each wanted package as a part, with its bytecode; a file that two of them bring is in both."""
        assert self._parts is not None
        wanted = self._names_of_parts()
        for number, (name, package) in enumerate(wanted.items()):
            _say("pack", f"packing {_count(wanted)}", number / len(wanted))
            files = [path for path in owners.get(name, []) if os.path.lexists(self._folder / path)]
            compiled = [bytecode for path in files if (bytecode := self._bytecode(path))]
            key = self._parts[package["sha256"]]
            layers.make_part(key, name, self._folder, [*files, *compiled], self._prefix, self._home)

    def _bytecode(self, path: str) -> str:
        """The compiled form of a module, if there is one."""
        module = Path(path)
        tag = "".join(self._python.split(".")[:2])
        compiled = module.parent / "__pycache__" / f"{module.stem}.cpython-{tag}.pyc"
        return str(compiled) if module.suffix == ".py" and (self._folder / compiled).exists() else ""


class _Download:
    """Tells of a download, a few times a second."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, came: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now - self._told > 0.2 or came == total:
            self._told = now
            _say(
                "download",
                f"downloading {name}, {came / 2**20:.0f} of {total / 2**20:.0f} MiB",
                came / total if total else 0.0,
            )


def conda_record(package: Mapping[str, Any], url: str) -> Any:
    """A locked conda package as rattler knows it, to be had at `url`."""
    channel, subdir, file_name = package["url"].rsplit("/", 2)
    name = urllib.parse.unquote(file_name)
    _, version, build = name.removesuffix(".tar.bz2").removesuffix(".conda").rsplit("-", 2)
    record = rattler.PackageRecord(
        name=package["name"],
        version=version,
        build=rattler.BuildString(build),
        build_number=0,
        subdir=subdir,
        sha256=bytes.fromhex(package["sha256"]),
        md5=bytes.fromhex(package["md5"] or "") or None,
        depends=list(package["depends"]),
    )
    return rattler.RepoDataRecord(record, file_name, url, channel)


def _count(packages: Sized) -> str:
    return f"{len(packages)} package{'s' if len(packages) != 1 else ''}"


def _stays(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not (name in _NOT_THE_SAME_EVERYWHERE and ".dist-info/" in path) and not path.endswith(".pyc")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(os.path.normpath(path), folder)


def _with_plain_shebang(data: bytes, prefix: bytes) -> bytes:
    """A script that starts its interpreter itself, where that has a path that allows it.

    Installers go through `/bin/sh` when the path is long or has spaces; here that was the path of a temporary folder.
    """
    start, end = b"#!/bin/sh\n'''exec' ", b"\n' '''\n"
    if not data.startswith(start) or end not in data or b" " in prefix or len(prefix) > _LONGEST_SHEBANG:
        return data
    interpreter = data[len(start) : data.index(end)].replace(b"'", b"").replace(b'"', b"").split(b" $0")[0]
    return b"#!" + interpreter + b"\n" + data[data.index(end) + len(end) :]


def _stable_record(text: str) -> str:
    """RECORD without what we removed, and without digests of scripts, which name the prefix."""
    kept = []
    for line in text.splitlines():
        path = line.rsplit(",", 2)[0]
        if path.rpartition("/")[2] in _NOT_THE_SAME_EVERYWHERE:
            continue
        kept.append(f"{path},," if path.startswith("../") else line)
    return "\n".join(sorted(kept)) + "\n"


def _rewrite(path: Path, data: bytes) -> None:
    """Write a file anew: it may be a hard link into the cache, which must not change."""
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(data)
    path.chmod(mode)


def _say(step: str, detail: str, done: float | None = None) -> None:
    sys.stderr.write(f"»{json.dumps([step, detail, done])}\n")
    sys.stderr.flush()


def main() -> None:
    """Read the request, answer, and never end with a traceback."""
    try:
        request = json.load(sys.stdin)
        installer = Installer(request)
        if request["folder"] is None:
            installer.fetch()
        else:
            installer.install()
        answer: dict[str, Any] = {"ok": {}}
    except RunLocalError as exc:
        answer = {"error": {"what": exc.what, "why": exc.why, "hint": exc.hint}}
    except Exception as exc:  # noqa: BLE001  whatever an installer raises is an answer
        answer = {"error": {"what": "packages cannot be installed", "why": f"{type(exc).__name__}: {exc}", "hint": ""}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
