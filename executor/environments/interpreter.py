"""The interpreter at hand, and the `pip` beside us, as conda packages.

`python` is made relocatable: the executable, its standard library, and the shared libraries that it needs beyond those of
any Linux, found through `$ORIGIN` instead of a path of this machine. Both packages are the same to the byte whenever they
are made from the same files.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from executor.environments.condapackage import FORMAT, entries_below, write_package
from executor.errors import LockError

SUBDIR, BUILD = "linux-64", "bridge_0"
_RECIPE = 4

_LEFT_OUT = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3"}
)
_OF_ANY_LINUX = (
    "ld-linux",
    "libc.so",
    "libm.so",
    "libdl.so",
    "libpthread.so",
    "librt.so",
    "libutil.so",
    "libresolv.so",
)

#: Debian puts packages elsewhere, and freezes `site` into its interpreter; this gives both back their usual meaning.
_SITECUSTOMIZE = """\
import site, sys
site.addsitedir(sys.prefix + "/lib/python{v}/site-packages")
"""
_SYSCONFIG = """
for _scheme in ("posix_local", "deb_system"):
    _INSTALL_SCHEMES[_scheme] = _INSTALL_SCHEMES["posix_prefix"]
"""


def identity() -> str:
    """Changes when the two packages would."""
    executable = Path(sys.base_prefix, "bin", f"python{_minor()}").resolve()
    facts = [_RECIPE, FORMAT, sys.version, str(executable), executable.stat().st_mtime_ns, _pip().version]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def write_packages(folder: Path) -> list[dict[str, Any]]:
    """Write both below the folder of a channel; answers with their records."""
    with tempfile.TemporaryDirectory(prefix="run-local-interpreter-") as scratch:
        python, pip = Path(scratch, "python"), Path(scratch, "pip")
        _python_files(python)
        _pip_files(pip)
        summary = "made by run-local from the interpreter of a machine"
        starts = ["pip = pip._internal.cli.main:main"]
        return [
            write_package(folder, _python_record(), entries_below(python), summary=summary),
            write_package(folder, _pip_record(), entries_below(pip), summary=summary, entry_points=starts),
        ]


def _minor() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _pip() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        raise LockError(
            "`pip` is missing beside run-local",
            why=f"an environment gets the one that is installed for {sys.executable}",
            hint=f"install it there, for example with `{sys.executable} -m ensurepip`",
        ) from None


def _python_record() -> dict[str, Any]:
    return {
        "name": "python",
        "version": platform.python_version(),
        "build": BUILD,
        "build_number": 0,
        "depends": [f"__glibc >={_glibc_needed()}"],
        "subdir": SUBDIR,
        "arch": "x86_64",
        "platform": "linux",
        "license": "PSF-2.0",
        "python_site_packages_path": f"lib/python{_minor()}/site-packages",
    }


def _pip_record() -> dict[str, Any]:
    return {
        "name": "pip",
        "version": _pip().version,
        "build": BUILD,
        "build_number": 0,
        "depends": [f"python {_minor()}.*"],
        "subdir": "noarch",
        "noarch": "python",
        "license": "MIT",
    }


# -- the files of each package -----------------------------------------------------------------------------------------


def _python_files(staging: Path) -> None:
    """Fill a folder with the files of Python, as they lie in a prefix."""
    minor = _minor()
    library = Path(sysconfig.get_path("stdlib"))
    target = staging / "lib" / f"python{minor}"
    shutil.copytree(library, target, symlinks=False, ignore=_unwanted, ignore_dangling_symlinks=True)
    (target / "site-packages").mkdir()
    (target / "site-packages" / "README.txt").write_text("Packages of this environment.\n")
    _undo_distribution(target)
    (staging / "bin").mkdir()
    executable = staging / "bin" / f"python{minor}"
    shutil.copyfile(Path(sys.base_prefix, "bin", f"python{minor}").resolve(), executable)
    executable.chmod(0o755)
    for name in ("python", "python3"):
        (staging / "bin" / name).symlink_to(executable.name)
    _forget_this_machine(target)
    _bundle_libraries(staging)


def _undo_distribution(library: Path) -> None:
    """Let an interpreter that a distribution has changed look for its packages where all others do."""
    (library / "sitecustomize.py").unlink(missing_ok=True)  # what it says is about this machine
    [module] = [path for name in ("sysconfig.py", "sysconfig/__init__.py") if (path := library / name).exists()]
    if "posix_local" in module.read_text():
        (library / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(v=_minor()))
        with module.open("a") as file:
            file.write(_SYSCONFIG)


def _unwanted(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name in _LEFT_OUT
        or name.endswith((".a", ".o", ".pyc"))
        or name == "EXTERNALLY-MANAGED"
        or name.startswith(("_test", "_tkinter", "_ctypes_test"))
        or (name.startswith("config-") and "config-" not in folder and not name.endswith(".py"))
    }


def _forget_this_machine(library: Path) -> None:
    """Replace the paths of the interpreter that we copied by ones that hold anywhere."""
    for path in library.glob("_sysconfigdata*.py"):
        if sys.base_prefix != "/usr":  # Debian's names its own packages' places, which is no secret of this machine
            path.write_text(path.read_text().replace(sys.base_prefix, "/opt/env"))


def _bundle_libraries(staging: Path) -> None:
    """Bring along every shared library that not every Linux has, and let each file find the others by `$ORIGIN`."""
    binaries = [staging / "bin" / f"python{_minor()}", *staging.glob("lib/python*/lib-dynload/*.so")]
    for name, source in sorted(_needed().items()):
        copy = staging / "lib" / name
        shutil.copyfile(source, copy)
        copy.chmod(0o755)
        binaries.append(copy)
    for binary in binaries:
        relative = os.path.relpath(staging / "lib", binary.parent)
        origin = "$ORIGIN" if relative == "." else f"$ORIGIN/{relative}"
        _call("patchelf", "--force-rpath", "--set-rpath", origin, str(binary))


def _originals() -> list[Path]:
    """The interpreter's own files that load shared libraries."""
    library = Path(sysconfig.get_path("stdlib"))
    extensions = [path for path in library.glob("lib-dynload/*.so") if not _unwanted("", [path.name])]
    return [Path(sys.base_prefix, "bin", f"python{_minor()}").resolve(), *extensions]


def _glibc_needed() -> str:
    """The oldest version of the C library that has all that they ask of it; this machine's may be far newer."""
    files = [*_originals(), *_needed().values()]
    asked = {number for path in files for number in re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())}
    major, minor = max((int(first), int(second)) for first, second in asked)
    return f"{major}.{minor}"


@functools.cache
def _needed() -> dict[str, Path]:
    """Shared libraries that they load, by name, without those of any Linux."""
    found: dict[str, Path] = {}
    for binary in _originals():
        for line in _call("ldd", str(binary)).splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            path = rest.partition(" (")[0]
            if arrow and path.startswith("/") and not name.startswith(_OF_ANY_LINUX):
                found[name] = Path(path)
    return found


def _call(program: str, *arguments: str) -> str:
    scripts = [str(Path(sys.executable).parent), sysconfig.get_path("scripts", f"{os.name}_user")]
    located = shutil.which(program, path=os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)]))
    if located is None:
        raise LockError(f"`{program}` is missing", why="it is needed to make the interpreter at hand relocatable")
    done = subprocess.run([located, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LockError("the interpreter at hand cannot be made relocatable", why=f"{program}: {done.stderr.strip()}")
    return done.stdout


def _pip_files(staging: Path) -> None:
    """Fill a folder with the files of pip, as they lie in a package for any platform."""
    distribution = _pip()
    target = staging / "site-packages"  # where a noarch Python package keeps its modules
    for file in distribution.files or []:
        if file.parts[0] != ".." and "__pycache__" not in file.parts and file.name not in ("RECORD", "REQUESTED"):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(distribution.locate_file(file))), target / file)
