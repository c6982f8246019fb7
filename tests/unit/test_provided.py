"""Which modules packages provide: by their files where they are here, otherwise by their names."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from executor.environments.archives import Archive, archive_path
from executor.environments.condapackage import entry_of, write_package
from executor.environments.lock import Lock, Package
from executor.environments.provided import Provided, provided_by_lock, provided_by_spec, read_modules
from executor.environments.spec import Spec


def wheel(path: Path, *names: str) -> Path:
    """A wheel with empty files of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def conda(folder: Path, *names: str) -> Path:
    """A conda package with empty files of these names."""
    record = {"name": "thing", "version": "1", "build": "0", "subdir": "noarch"}
    write_package(folder, record, [entry_of(name, b"") for name in names], summary="")
    return folder / "noarch" / "thing-1-0.conda"


def lock(*packages: tuple[str, str]) -> Lock:
    """A lock of packages: the name and the URL of each."""
    made = [
        Package(name=name, version="1", manager="pip", url=url, sha256=f"{number:064x}", md5=None, depends=())
        for number, (name, url) in enumerate(packages)
    ]
    return Lock(path=Path("conda-lock.yml"), packages=tuple(made), bridge=False, spec="", asked=())


def spec(*conda: str, pip: tuple[str, ...] = ()) -> Spec:
    """A specification of these requirements."""
    return Spec(name="env", path=None, sources={}, channels=(), conda=conda, pip=pip)


def test_a_wheel_provides_its_modules(tmp_path: Path) -> None:
    """Packages, single modules, extensions, namespaces and what lies in its data; no metadata, data or scripts."""
    path = wheel(
        tmp_path / "thing-1-py3-none-any.whl",
        *("pack/__init__.py", "pack/sub/x.py", "single.py", "_fast.cpython-311-x86_64-linux-gnu.so", "_stable.abi3.so"),
        *("google/thing/__init__.py", "thing-1.data/purelib/inside/__init__.py", "thing-1.data/scripts/tool.py"),
        *("thing-1.dist-info/METADATA", "thing-1.dist-info/RECORD", "thing.libs/libx.so", "thing.pth", "docs/a.txt"),
    )
    assert read_modules(path) == {"pack", "single", "_fast", "_stable", "google", "inside"}


def test_a_conda_package_provides_its_modules(tmp_path: Path) -> None:
    """For one Python, or for all of them; libraries and programs are no modules."""
    names = ["lib/python3.11/site-packages/pack/__init__.py", "site-packages/noarch_one.py", "lib/libx.so", "bin/x.py"]
    assert read_modules(conda(tmp_path, *names, "lib/python3.11/site-packages/x.egg-info/PKG")) == {
        "pack",
        "noarch_one",
    }


def test_an_old_conda_package_provides_its_modules(tmp_path: Path) -> None:
    """A `.tar.bz2`, whose list may be a text."""
    path = tmp_path / "thing-1-0.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        data = b"lib/python3.9/site-packages/old/__init__.py\n"
        header = tarfile.TarInfo("info/files")
        header.size = len(data)
        archive.addfile(header, io.BytesIO(data))
    assert read_modules(path) == {"old"}


def test_archives_are_read_once(tmp_path: Path) -> None:
    """What one holds is kept beside it; one that is not here is known by its name, and so is a damaged one."""
    locked = lock(
        ("pillow", "https://x/pillow-1.whl"), ("numpy", "https://x/numpy-1.whl"), ("bad", "https://x/bad.whl")
    )
    paths = [
        archive_path(Archive(name=each.name, url=each.url, sha256=each.sha256), tmp_path) for each in locked.packages
    ]
    wheel(paths[0], "PIL/__init__.py")
    paths[2].parent.mkdir(parents=True)
    paths[2].write_bytes(b"no wheel")
    assert provided_by_lock(locked, tmp_path) == Provided(modules=frozenset({"PIL"}), named=("numpy", "bad"))
    kept = paths[0].with_name("modules.json")
    assert json.loads(kept.read_text()) == ["PIL"]
    kept.write_text('["kept"]')
    assert provided_by_lock(locked, tmp_path).modules == {"kept"}
    assert sorted(each.name for each in paths[0].parent.iterdir()) == ["modules.json", "pillow-1.whl"]


def test_an_archive_of_this_machine_is_read_where_it_lies(tmp_path: Path) -> None:
    """Nothing is written beside a file that is not ours."""
    path = wheel(tmp_path / "mine" / "thing-1-py3-none-any.whl", "thing.py")
    assert provided_by_lock(lock(("thing", path.as_uri())), tmp_path / "home").modules == {"thing"}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("numpy", "numpy"),
        ("charset_normalizer", "charset-normalizer"),
        ("PIL", "Pillow"),
        ("sklearn", "scikit-learn"),
        ("yaml", "pyyaml"),
        ("cv2", "opencv-python-headless"),
        ("torch", "pytorch"),
        ("bs4", "beautifulsoup4"),
        ("Bio", "biopython"),
        ("dateutil", "python-dateutil"),
        ("attr", "attrs"),
        ("google", "protobuf"),
        ("matplotlib", "matplotlib-base"),
        ("dask", "dask-core"),
        ("dotenv", "python_dotenv"),
    ],
)
def test_a_name_that_is_known_tells_the_module(module: str, package: str) -> None:
    """The same name, what conda adds to it, or one of the well-known exceptions."""
    named = Provided(named=("python", package))
    assert (named.has(module), named.has("flash_abb")) == (True, False)
    assert named.judged_by == "names"


@pytest.mark.parametrize(
    ("module", "package"), [("numpy", "numpydoc"), ("fitz", "pymupdf-fitz"), ("levenshtein", "levenstein")]
)
def test_a_name_that_is_only_alike_tells_nothing(module: str, package: str) -> None:
    """In doubt nothing is said."""
    assert Provided(named=("python", package)).has(module) is None


def test_files_decide_where_all_are_here() -> None:
    """Names do not matter then."""
    there = Provided(modules=frozenset({"yaml"}))
    assert (there.has("yaml"), there.has("pyyaml"), there.judged_by) == (True, False, "files")


def test_a_specification_tells_what_it_names(tmp_path: Path) -> None:
    """Others come with what it names, so a module is missing only where it names nothing but Python."""
    asked = provided_by_spec(
        spec("python >=3.10", "conda-forge::pytorch=2.1", "pip", pip=("numpy[x]==1; python_version>'3'",))
    )
    assert [asked.has(name) for name in ("torch", "numpy", "scipy")] == [True, True, None]
    assert asked.judged_by == "specification"
    alone = provided_by_spec(spec("python >=3.10,<3.13"))
    assert [alone.has(name) for name in ("numpy", "setuptools")] == [False, None]
