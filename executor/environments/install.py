"""`python -m executor.environments.install`: the packages of a lock in a folder, in a process of its own.

conda packages are installed by py-rattler, wheels by uv, both from verified archives under `home/packages`; scripts and
text already name the final prefix, wherever the folder is. Then everything is byte-compiled, and what differs from one
machine to the next is taken out.

Request, as JSON on stdin: packages (of the lock), folder (empty, on the file system of the cache), prefix (its final
place), home. Answer and progress as in `solve`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rattler
import uv

from executor import machine
from executor.errors import BuildError, RunLocalError

_LONGEST_SHEBANG = 100
_NOT_COMPILED = frozenset({"test", "tests", "lib2to3"})
_NOT_THE_SAME_EVERYWHERE = ("direct_url.json", "uv_cache.json", "REQUESTED", "INSTALLER")


class Installer:
    """Carries out one request."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._folder, self._prefix = Path(request["folder"]), str(request["prefix"])
        self._home = Path(request["home"])
        self._conda = [package for package in request["packages"] if package["manager"] == "conda"]
        self._pip = [package for package in request["packages"] if package["manager"] == "pip"]

    def install(self) -> None:
        """Fill the folder."""
        _say(f"installing {len(self._conda) + len(self._pip)} packages")
        for package in self._conda:
            _check_file(package)
        asyncio.run(self._install_conda())
        if self._pip:
            self._install_wheels()
        self._name_final_prefix()
        self._leave_out_what_differs()
        _say("byte-compiling")
        self._compile()

    async def _install_conda(self) -> None:
        await rattler.install(
            [_record(package) for package in self._conda],
            target_prefix=self._folder,
            cache_dir=self._home / "packages" / "conda",
            alternative_target_prefix=self._prefix,
            show_progress=False,
        )

    def _install_wheels(self) -> None:
        lines = [f"{each['name']} @ {each['url']} --hash=sha256:{each['sha256']}" for each in self._pip]
        requirements = self._folder / "requirements.txt"
        requirements.write_text("\n".join(lines))
        command = [
            *(uv.find_uv_bin(), "pip", "install", "--quiet", "--no-config", "--no-deps"),
            *("--python", str(self._folder / "bin/python"), "--require-hashes", "--only-binary", ":all:"),
            *("--link-mode", "hardlink", "--cache-dir", str(self._home / "packages" / "uv"), "-r", str(requirements)),
        ]
        # What was fetched once is right by its digest: no server has to be asked whether it still is.
        done = machine.run([*command, "--offline"])
        if done.returncode:
            done = machine.run(command)
        requirements.unlink()
        if done.returncode:
            raise BuildError("packages cannot be installed", why=done.stderr.strip()[-2000:])

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

    def _compile(self) -> None:
        """Compile every module, on all cores, each process tied to this one.

        Packages hold files for other versions of Python, which do not compile here; that is no failure. Files are named
        from within the folder, so that what is left out does not depend on where it is.
        """
        found = (path.relative_to(self._folder) for path in self._folder.glob("lib/python*/**/*.py"))
        modules = sorted(str(path) for path in found if not _NOT_COMPILED.intersection(path.parts))
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


def _record(package: Mapping[str, Any]) -> Any:
    parts = package["url"].rsplit("/", 2)
    channel, subdir, file_name = parts
    _, version, build = file_name.removesuffix(".tar.bz2").removesuffix(".conda").rsplit("-", 2)
    record = rattler.PackageRecord(
        name=package["name"],
        version=version,
        build=rattler.BuildString(build),
        build_number=0,
        subdir=subdir,
        sha256=bytes.fromhex(package["sha256"]),
        depends=list(package["depends"]),
    )
    return rattler.RepoDataRecord(record, file_name, package["url"], channel)


def _check_file(package: Mapping[str, Any]) -> None:
    """Check the digest of an archive on this machine, which the installer would not."""
    parts = urllib.parse.urlsplit(package["url"])
    if parts.scheme != "file":
        return
    path = Path(urllib.parse.unquote(parts.path))
    if not path.exists():
        raise BuildError(
            f"the archive of `{package['name']}` is gone", why=str(path), hint="`run-local lock` solves again"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != package["sha256"]:
        raise BuildError(f"the archive of `{package['name']}` is not the one that was locked", why=str(path))


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


def _say(text: str) -> None:
    sys.stderr.write(f"»{text}\n")
    sys.stderr.flush()


def main() -> None:
    """Read the request, answer, and never end with a traceback."""
    try:
        Installer(json.load(sys.stdin)).install()
        answer: dict[str, Any] = {"ok": {}}
    except RunLocalError as exc:
        answer = {"error": {"what": exc.what, "why": exc.why, "hint": exc.hint}}
    except Exception as exc:  # noqa: BLE001  whatever an installer raises is an answer
        answer = {"error": {"what": "packages cannot be installed", "why": f"{type(exc).__name__}: {exc}", "hint": ""}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
