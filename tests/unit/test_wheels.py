"""conda's words in PyPI's and back, and wheels as conda packages: what they hold, what they say, and the same each time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from packaging.requirements import Requirement

from executor.environments import channel, wheels
from executor.environments.bridge import explain
from executor.environments.condapackage import PLACEHOLDER, file_name
from executor.environments.translation import as_match_spec, conda_name, for_conda_lock, pypi_name, understand
from executor.errors import LockError
from tests.environments.small import make_wheel

BINARY = "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"


def source(wheel: Path, python: str = "3.11.7") -> wheels.Source:
    return wheels.Source(path=wheel, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), python=python)


def read_package(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, bytes]]]:
    """The documents of a package, and its files with mode and content."""
    documents: dict[str, Any] = {}
    files: dict[str, tuple[int, bytes]] = {}
    with zipfile.ZipFile(path) as outer:
        assert json.loads(outer.read("metadata.json")) == {"conda_pkg_format_version": 2}
        for part in ("info", "pkg"):
            data = outer.read(f"{part}-{path.stem}.tar.zst")
            plain = zstandard.ZstdDecompressor().stream_reader(data).read()
            with tarfile.open(fileobj=io.BytesIO(plain)) as inner:
                for member in inner:
                    assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                    content = inner.extractfile(member)
                    assert content is not None
                    if part == "info":
                        documents[member.name] = json.loads(content.read())
                    else:
                        files[member.name] = (member.mode, content.read())
    return documents, files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("numpy", "numpy"),
        ("numpy *", "numpy"),
        ("numpy 2.1", "numpy==2.1"),
        ("numpy==2.1", "numpy==2.1"),
        ("numpy=2.1", "numpy==2.1.*"),
        ("numpy 2.1.*", "numpy==2.1.*"),
        ("numpy>=2,<3", "numpy>=2,<3"),
        ("numpy >= 2, < 3.0a0", "numpy>=2,<3"),
        ("numpy >=2,<2.4.0a0", "numpy>=2,<2.4"),
        ("numpy !=1.5.*,>=1", "numpy!=1.5.*,>=1"),
        ("numpy ~=2.1", "numpy~=2.1"),
        ("numpy[version='>=2,<3']", "numpy>=2,<3"),
        ("conda-forge::numpy=2", "numpy==2.*"),
        ("x 1!2.0", "x==1!2.0"),
        ("x =1.0rc1", "x==1.0rc1"),
        ("matplotlib-base >=3.8", "matplotlib>=3.8"),
        ("matplotlib", "matplotlib"),
        ("pytorch=2.5", "torch==2.5.*"),
        ("opencv", "opencv-python-headless"),
        ("ruamel.yaml", "ruamel-yaml"),
        ("importlib_metadata", "importlib-metadata"),
    ],
)
def test_a_conda_requirement_in_pips_words(text: str, line: str) -> None:
    """Name and version; nothing is left out but the channel."""
    asked = understand(text)
    assert (asked.line, asked.build) == (line, "")


def test_a_build_is_set_apart() -> None:
    """A wheel has none; whoever serves the requirement says so."""
    assert understand("numpy=2.1=py311h1_0").build == "py311h1_0"
    assert understand("numpy=*=*openblas").line == "numpy"


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("gcc", "Python packages only", "RUN_LOCAL_MIRRORS"),
        ("hmmer >=3", "Python packages only", "`apt:`"),
        ("r-ggplot2", "Python packages only", "`pip:`"),
        ("_libgcc_mutex", "Python packages only", "RUN_LOCAL_MIRRORS"),
        ("graphviz", "Python packages only", "`python-graphviz`"),
        ("torch", "its name on PyPI", "write `pytorch`"),
        ("numpy 1.26|2.0", "alternatives", "write one range"),
        ("openblas-like 9e", "`==9e` is no version", "as PyPI has it"),
        ("numpy [", "", ""),
    ],
)
def test_what_has_no_counterpart_is_refused(text: str, why: str, hint: str) -> None:
    """With the reason, and what to do instead."""
    with pytest.raises(LockError) as caught:
        understand(text)
    assert why in caught.value.why
    assert hint in caught.value.hint
    assert text.split()[0] in caught.value.what


def test_names_lead_there_and_back() -> None:
    """Every name that differs; and conda-lock gets each of them in the form that it reads."""
    for pypi, entry in for_conda_lock().items():
        assert entry["pypi_name"] == pypi
        assert pypi_name(entry["conda_name"]) == pypi
        assert conda_name(pypi) == entry["conda_name"] != pypi
    assert conda_name("Typing.Extensions") == "typing_extensions"
    assert conda_name("NumPy") == "numpy"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("numpy", "numpy"),
        ("NumPy>=1.2,!=1.5.*,<2; python_version > '3'", "numpy !=1.5.*,<2,>=1.2"),
        ("a==1.*", "a 1.*"),
        ("a===1.0", "a ==1.0"),
        ("torch==2.5.1+cpu", "pytorch ==2.5.1"),
        ("requests[socks]~=2.1", "requests ~=2.1"),
    ],
)
def test_a_dependency_of_a_wheel_in_condas_words(text: str, spec: str) -> None:
    """Where conda writes it otherwise, it is written so."""
    assert as_match_spec(Requirement(text)) == spec


def test_a_wheel_for_any_platform(tmp_path: Path) -> None:
    """Its files lie where conda puts them when it knows which Python; its scripts are for conda to make."""
    wheel = make_wheel(
        tmp_path,
        "envtest_any",
        "1.5",
        script="envtest-any",
        metadata=[
            "Summary: tries things",
            "License: MIT",
            "Requires-Dist: torch (>=2)",
            "Requires-Dist: tomli>=1; python_version < '3.11'",
            "Requires-Dist: colorama; sys_platform == 'win32'",
            "Requires-Dist: uvicorn[Standard]>=0.3",
            "Requires-Dist: pytest; extra == 'dev'",
        ],
        more={
            "envtest_any-1.5.data/data/share/x.txt": "x",
            "envtest_any-1.5.data/scripts/tool": "#!python -u\nprint(1)\n",
            "envtest_any-1.5.data/purelib/more.py": "",
            "envtest_any-1.5.data/headers/any.h": "",
            "envtest_any-1.5.dist-info/direct_url.json": "{}",
        },
    )
    record = wheels.convert(source(wheel), tmp_path)
    assert {**record, "build": "", "sha256": "", "md5": "", "size": 0} == {
        "name": "envtest-any",
        "version": "1.5",
        "build": "",
        "build_number": 0,
        "depends": ["python >=3.11,<3.12.0a0", "pytorch >=2", "uvicorn >=0.3", "uvicorn-with-standard >=0.3"],
        "license": "MIT",
        "subdir": "noarch",
        "noarch": "python",
        "sha256": "",
        "md5": "",
        "size": 0,
    }
    data = channel.package_path(tmp_path, record).read_bytes()
    assert (record["sha256"], record["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    documents, files = read_package(channel.package_path(tmp_path, record))
    assert documents["info/index.json"] == {k: v for k, v in record.items() if k not in ("sha256", "md5", "size")}
    assert documents["info/about.json"] == {"summary": "tries things"}
    assert documents["info/link.json"]["noarch"] == {
        "type": "python",
        "entry_points": ["envtest-any = envtest_any:main"],
    }
    assert sorted(files) == [
        "include/python3.11/envtest_any/any.h",
        "python-scripts/tool",
        "share/x.txt",
        "site-packages/envtest_any-1.5.dist-info/METADATA",
        "site-packages/envtest_any-1.5.dist-info/RECORD",
        "site-packages/envtest_any-1.5.dist-info/WHEEL",
        "site-packages/envtest_any-1.5.dist-info/entry_points.txt",
        "site-packages/envtest_any.py",
        "site-packages/more.py",
    ]
    assert files["python-scripts/tool"] == (0o755, f"#!{PLACEHOLDER}/bin/python3.11\nprint(1)\n".encode())
    rows = files["site-packages/envtest_any-1.5.dist-info/RECORD"][1].decode().splitlines()
    assert "../../../bin/envtest-any,," in rows
    assert "../../../bin/tool,," in rows
    assert "../../../share/x.txt,," in rows
    assert any(row.startswith("more.py,sha256=") for row in rows)
    paths = {each["_path"]: each for each in documents["info/paths.json"]["paths"]}
    assert set(paths) == set(files)
    for path, (_, content) in files.items():
        assert paths[path]["sha256"] == hashlib.sha256(content).hexdigest()
    assert [path for path, each in paths.items() if each.get("prefix_placeholder")] == ["python-scripts/tool"]


def test_a_wheel_for_linux(tmp_path: Path) -> None:
    """It says which Python and which C library it needs, and brings its scripts."""
    wheel = make_wheel(tmp_path, "envtest_binary", "2.0+cpu", script="go", tag=BINARY, more={"a/b.so": "elf"})
    record = wheels.convert(source(wheel), tmp_path)
    assert record["subdir"] == "linux-64"
    assert record["version"] == "2.0"
    assert record["build"].startswith("cpu_py311h")
    assert record["depends"] == ["python >=3.11,<3.12.0a0", "__glibc >=2.17"]
    documents, files = read_package(channel.package_path(tmp_path, record))
    assert "info/link.json" not in documents
    assert "lib/python3.11/site-packages/a/b.so" in files
    mode, script = files["bin/go"]
    assert mode == 0o755
    assert script.decode().splitlines()[:4] == [
        f"#!{PLACEHOLDER}/bin/python3.11",
        "import sys",
        "",
        "from envtest_binary import main",
    ]


def test_the_same_wheel_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another folder, too; for another Python it is another package, with another name."""
    wheel = source(make_wheel(tmp_path, "envtest_binary", "2.0", script="go", tag=BINARY))
    first, again = wheels.convert(wheel, tmp_path / "a"), wheels.convert(wheel, tmp_path / "b")
    assert first == again
    paths = [channel.package_path(tmp_path / name, first) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert file_name(wheels.identity(source(wheel.path, "3.11.8"), wheel.name)) != file_name(first)
    assert not list(tmp_path.glob("*/.half-*"))


def test_extras_and_other_names_are_packages_that_hold_nothing(tmp_path: Path) -> None:
    """Conda has no extras: whoever asks for one depends on a package that asks for what the extra does."""
    asks = ["Requires-Dist: idna", "Requires-Dist: PySocks>=1.5.6,!=1.5.7; extra == 'socks'"]
    asks.append("Requires-Dist: envtest_extra[socks]; extra == 'all'")
    wheel = source(make_wheel(tmp_path, "envtest_extra", "3.1", metadata=asks))
    socks = wheels.convert_extra("envtest-extra-with-socks", "socks", wheel, tmp_path)
    assert (socks["noarch"], socks["version"]) == ("generic", "3.1")
    assert socks["depends"] == ["envtest-extra ==3.1", "pysocks !=1.5.7,>=1.5.6"]
    every = wheels.convert_extra("envtest-extra-with-all", "all", wheel, tmp_path)
    assert wheels.extras_of(every) == [("envtest-extra", "socks")]
    alias = wheels.convert_alias("envtest", wheel, tmp_path)
    assert (alias["name"], alias["depends"]) == ("envtest", ["envtest-extra ==3.1"])
    assert read_package(channel.package_path(tmp_path, alias))[1] == {}


@pytest.mark.parametrize("name", ["../../evil.py", "/etc/evil", "envtest_bad-1.0.data/elsewhere/x"])
def test_a_wheel_that_leads_out_of_its_package_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever it is called."""
    wheel = source(make_wheel(tmp_path, "envtest_bad", "1.0", more={name: "x"}))
    with pytest.raises(LockError, match="is no wheel"):
        wheels.convert(wheel, tmp_path)
    assert not list(tmp_path.rglob("*.conda"))


def test_an_index_holds_what_was_added(tmp_path: Path) -> None:
    """In both of a channel's parts; a package of the same file name takes the place of the earlier one."""
    records = [
        wheels.convert(source(make_wheel(tmp_path, "envtest_one", "1.0", tag=tag)), tmp_path)
        for tag in ("py3-none-any", BINARY)
    ]
    for record in [*records, *records]:
        channel.add(tmp_path, [record])
    assert channel.read_index(tmp_path) == sorted(records, key=lambda record: str(record["subdir"]))
    assert all(channel.is_whole(tmp_path, record) for record in records)
    channel.package_path(tmp_path, records[0]).write_bytes(b"")
    assert not channel.is_whole(tmp_path, records[0])


def test_what_pypis_solver_says_in_words_that_help() -> None:
    """A package that it does not have, or only as source; other reasons are for whoever asked."""
    unknown = explain("cause: Because torch was not found in the package registry and you require torch", ["pytorch 2"])
    assert unknown is not None
    assert unknown.what == "`pytorch` cannot be had without a conda channel"
    source_only = explain("Because …\nhint: Wheels are required for `torch` because building is disabled", ["x"])
    assert source_only is not None
    assert "`pytorch`" in source_only.what
    assert "torch @ file://" in source_only.hint
    assert explain("Because you require numpy>=99, we can conclude …", ["numpy >=99"]) is None
