"""Which modules the packages of an environment provide, as far as that is known without making it.

An archive that is here says itself which modules it holds; that is read once and kept beside it. Before the archives are
fetched, packages are judged by their names, and before there is a lock, by the names that a specification asks for.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import zstandard

from executor.environments.archives import Archive, archive_path, local_path
from executor.environments.lock import Lock, Package
from executor.environments.spec import Spec

JudgedBy = Literal["files", "names", "specification"]

_KEPT = "modules.json"
_IN_SITE_PACKAGES = re.compile(r"(?:lib/python\d+\.\d+/)?site-packages/(.+)")
_IN_WHEEL_DATA = re.compile(r"[^/]+\.data/(?:purelib|platlib)/(.+)")
_CODE = (".py", ".so", ".pyd")
_ALIKE = 0.5

#: Packages whose modules are not called like them, by the names of conda and of PyPI.
_MODULES = {
    "antlr4-python3-runtime": ("antlr4",),
    "antlr-python-runtime": ("antlr4",),
    "attrs": ("attr", "attrs"),
    "beautifulsoup4": ("bs4",),
    "biopython": ("Bio", "BioSQL"),
    "dask-core": ("dask",),
    "docker-py": ("docker",),
    "faiss-cpu": ("faiss",),
    "faiss-gpu": ("faiss",),
    "gitpython": ("git",),
    "grpcio": ("grpc",),
    "hdf5plugin": ("hdf5plugin",),
    "importlib-metadata": ("importlib_metadata",),
    "matplotlib": ("matplotlib", "mpl_toolkits", "pylab"),
    "matplotlib-base": ("matplotlib", "mpl_toolkits", "pylab"),
    "msgpack-python": ("msgpack",),
    "opencv": ("cv2",),
    "opencv-contrib-python": ("cv2",),
    "opencv-python": ("cv2",),
    "opencv-python-headless": ("cv2",),
    "openmm": ("openmm", "simtk"),
    "pillow": ("PIL",),
    "protobuf": ("google",),
    "py-opencv": ("cv2",),
    "pyarrow-core": ("pyarrow",),
    "pycryptodome": ("Crypto",),
    "pyjwt": ("jwt",),
    "pyopenssl": ("OpenSSL",),
    "pyserial": ("serial",),
    "pytables": ("tables",),
    "python-dateutil": ("dateutil",),
    "python-dotenv": ("dotenv",),
    "pytorch": ("torch", "functorch"),
    "pytorch-cpu": ("torch", "functorch"),
    "pytorch-gpu": ("torch", "functorch"),
    "pyyaml": ("yaml",),
    "pyzmq": ("zmq",),
    "rdkit": ("rdkit",),
    "scikit-image": ("skimage",),
    "scikit-learn": ("sklearn",),
    "setuptools": ("setuptools", "pkg_resources", "_distutils_hack"),
    "torch": ("torch", "functorch", "torchgen"),
    "torch-geometric": ("torch_geometric",),
    "typing-extensions": ("typing_extensions",),
}
_BEGINNINGS = ("python-", "py-")
_ENDINGS = ("-base", "-core", "-python", "-py", "-cpu", "-gpu")

#: What no lock has to name: Python, which holds no packages, and what it may bring along.
_PYTHON = frozenset({"python", "pip", "setuptools", "wheel"})
_MAY_COME_WITH_PYTHON = frozenset({"pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack"})


@dataclass(frozen=True, kw_only=True)
class Provided:
    """What is known of the modules of one environment.

    modules: those that archives hold, which were read
    named:   packages that could not be read, and are known by their names
    whole:   all packages are among these; otherwise there is no lock yet, and more will come
    """

    modules: frozenset[str] = frozenset()
    named: tuple[str, ...] = ()
    whole: bool = True

    @property
    def judged_by(self) -> JudgedBy:
        """What is known of its packages: their files, their names, or only the names that were asked for."""
        return "specification" if not self.whole else "names" if self.named else "files"

    def has(self, module: str) -> bool | None:
        """Whether a module, by the first part of its name, is there; None where that cannot be known yet."""
        if module in self.modules or any(module in _guess(name) for name in self.named):
            return True
        if not self.whole:
            return None if module in _MAY_COME_WITH_PYTHON or not _PYTHON.issuperset(self.named) else False
        return None if any(_is_alike(module, name) for name in self.named) else False


def provided_by_lock(lock: Lock, home: Path) -> Provided:
    """What the packages of a lock provide."""
    modules: set[str] = set()
    named: list[str] = []
    for package in lock.packages:
        found = _read(package, home)
        if found is None:
            named.append(package.name)
        else:
            modules |= found
    return Provided(modules=frozenset(modules), named=tuple(named))


def provided_by_spec(spec: Spec) -> Provided:
    """What a specification without a lock is known to provide: the packages that it names."""
    names = [re.split(r"[\s\[=<>!~;@]", text.rpartition("::")[2], maxsplit=1)[0] for text in (*spec.conda, *spec.pip)]
    return Provided(named=tuple(names), whole=False)


def _read(package: Package, home: Path) -> set[str] | None:
    """The modules that a package holds; None where its archive is not here, or is none."""
    archive = Archive(name=package.name, url=package.url, sha256=package.sha256)
    path = archive_path(archive, home)
    kept = path.with_name(_KEPT)
    with contextlib.suppress(OSError, ValueError):
        return set(json.loads(kept.read_bytes()))
    local = local_path(package.url)
    try:
        found = read_modules(path if local is None or path.exists() else local)
    except (
        OSError,
        ValueError,
        LookupError,
        EOFError,
        StopIteration,
        tarfile.TarError,
        zipfile.BadZipFile,
        zstandard.ZstdError,
    ):
        return None
    if path.exists():
        _keep(found, kept)
    return found


def _keep(modules: set[str], target: Path) -> None:
    with contextlib.suppress(OSError):  # it is read again, then
        descriptor, half = tempfile.mkstemp(dir=target.parent, prefix="half-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(sorted(modules), file)
        Path(half).replace(target)


def read_modules(path: Path) -> set[str]:
    """The modules that an archive installs as packages, by the first parts of their names."""
    if path.name.endswith(".whl"):
        with zipfile.ZipFile(path) as wheel:
            files = [_inside(_IN_WHEEL_DATA, name) or name for name in wheel.namelist()]
    else:
        files = [_inside(_IN_SITE_PACKAGES, name) for name in _paths_of_conda(path)]
    return {module for name in files if (module := _module(name))}


def _inside(pattern: re.Pattern[str], name: str) -> str:
    found = pattern.fullmatch(name)
    return found[1] if found else ""


def _module(file: str) -> str:
    """The first part of the name that a file is imported by; empty for one that is not imported."""
    path = PurePosixPath(file)
    top = path.parts[0] if path.parts else ""
    name = top if len(path.parts) > 1 else top.partition(".")[0]
    return name if path.suffix in _CODE and name.isidentifier() else ""


def _paths_of_conda(path: Path) -> list[str]:
    """The files that a conda package says it has."""
    if not path.name.endswith(".conda"):
        with tarfile.open(path, "r|bz2") as package:
            return _listed(package)
    with zipfile.ZipFile(path) as outer:
        member = next(each for each in outer.infolist() if each.filename.startswith("info-"))
        with (
            outer.open(member) as packed,
            zstandard.ZstdDecompressor().stream_reader(packed) as stream,
            tarfile.open(fileobj=stream, mode="r|") as package,
        ):
            return _listed(package)


def _listed(package: tarfile.TarFile) -> list[str]:
    for member in package:
        if member.name == "info/paths.json" and (file := package.extractfile(member)):
            return [str(each["_path"]) for each in json.load(file)["paths"]]
        if member.name == "info/files" and (file := package.extractfile(member)):
            return file.read().decode().splitlines()
    raise ValueError("it has no list of its files")


def _guess(package: str) -> Iterator[str]:
    """The modules that a package of this name should hold."""
    name = re.sub(r"[-_.]+", "-", package.lower())
    yield from _MODULES.get(name, ())
    yield package.replace("-", "_")
    shorter = (*(name.removeprefix(each) for each in _BEGINNINGS), *(name.removesuffix(each) for each in _ENDINGS))
    yield from (each.replace("-", "_") for each in (name, *shorter))


def _is_alike(module: str, package: str) -> bool:
    """Whether a package might hold the module, under a name that is only similar."""
    one, other = module.lower(), package.lower().replace("-", "_")
    if other in _PYTHON:
        return False
    return one in other or other in one or difflib.SequenceMatcher(None, one, other).ratio() >= _ALIKE
