"""Locks that real solvers make: the same twice, with pip's own settings, and refused in words that help."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.environments import Builder, read_spec
from executor.environments.lock import read_lock
from executor.environments.spec import Spec
from executor.errors import LockError
from tests.harness import RunLocal


def make_wheel(folder: Path, name: str, version: str, script: str = "") -> Path:
    """A wheel with one module that knows its version, and a console script."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n\ndef main() -> None:\n    print('{name}', VERSION)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script} = {name}:main\n"
    sums = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    files[f"{info}/RECORD"] = "".join(f"{path},sha256={sums[path].decode().rstrip('=')},\n" for path in sums)
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


def make_spec(folder: Path, name: str, *pip: str) -> Spec:
    path = folder / "envs" / name / "environment.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"dependencies": ["python", *([{"pip": pip}] if pip else [])]}))
    return read_spec(path, name)


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    """Builds prefixes in a home of its own."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    made = Builder("process", home, lambda *_: None)
    yield made
    made.close()


def test_the_same_request_gives_the_same_lock(builder: Builder, tmp_path: Path) -> None:
    """To the byte, also after the bridge channel and every cache were made anew."""
    spec = make_spec(tmp_path, "x", "chardet==5.2.0")
    _, locked = builder.lock(spec)
    first = locked.path.read_bytes()
    [channel] = (tmp_path / "home/channel").iterdir()
    packages = {path.name: path.read_bytes() for path in channel.rglob("*") if path.is_file()}
    for folder in ("channel", "packages", "locks"):
        shutil.rmtree(tmp_path / "home" / folder)
    _, again = builder.lock(spec)
    assert again.path.read_bytes() == first
    assert {path.name: path.read_bytes() for path in channel.rglob("*") if path.is_file()} == packages
    assert {"repodata.json"} < set(packages)


def test_a_folder_of_wheels_and_a_wheel_by_its_name_are_enough(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any index: pip's find-links and `no-index`, a direct reference, and paths with spaces in them."""
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "envtest_linked", "1.5", script="envtest-linked")
    direct = make_wheel(tmp_path / "räder 1", "envtest_direct", "2.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    spec = make_spec(tmp_path, "x", "envtest-linked >=1", f"envtest-direct @ {direct.as_uri()}")
    built = builder.build_spec(spec)
    sums = {package.name: package.sha256 for package in read_lock(built.lock).packages}
    assert sums["envtest-direct"] == hashlib.sha256(direct.read_bytes()).hexdigest()
    assert built.prefix is not None
    said = subprocess.run([built.prefix / "bin/envtest-linked"], capture_output=True, text=True, check=True)
    assert said.stdout == "envtest_linked 1.5\n"


def test_a_wheel_that_changed_after_it_was_locked_is_not_installed(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest is checked, and no prefix is made of it."""
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "envtest_linked", "1.5")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    spec = make_spec(tmp_path, "x", "envtest-linked")
    builder.lock(spec)
    shutil.rmtree(tmp_path / "home/packages")
    make_wheel(wheels, "envtest_linked", "1.5", script="envtest-linked")
    with pytest.raises(Exception, match="packages cannot be installed") as caught:
        builder.build_spec(spec)
    assert "envtest-linked" in getattr(caught.value, "why", "").replace("_", "-")
    assert not [path for path in (tmp_path / "home").glob("prefixes/*") if path.is_dir()]


def test_an_unknown_version_of_python_is_refused_with_who_asked(builder: Builder, tmp_path: Path) -> None:
    """The conda solver's reason, and the line of the specification."""
    path = tmp_path / "environment.yml"
    path.write_text("dependencies: [python ==2.6]\n")
    with pytest.raises(LockError, match="environment `x` cannot be solved") as caught:
        builder.lock(read_spec(path, "x"))
    assert "`x` asks for `python ==2.6`" in caught.value.why


def test_a_package_without_wheels_is_refused(builder: Builder, tmp_path: Path) -> None:
    """Nothing is built from source; the message says so."""
    with pytest.raises(LockError, match="cannot be solved") as caught:
        builder.lock(make_spec(tmp_path, "x", "docopt==0.6.2"))
    assert "no usable wheels" in caught.value.why
    assert "`x` asks for `docopt==0.6.2`" in caught.value.why


def test_an_index_that_never_answers_is_given_up(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and says nothing: an error soon, which names the way to the settings."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("UV_HTTP_TIMEOUT", "1")
        monkeypatch.setenv("UV_HTTP_RETRIES", "1")
        began = time.monotonic()
        with pytest.raises(LockError, match="the package index does not answer") as caught:
            builder.lock(make_spec(tmp_path, "x", "chardet"))
    assert time.monotonic() - began < 30
    assert "127.0.0.1" in caught.value.why
    assert "pip config list" in caught.value.hint


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode != 0,
    reason="no network namespaces here",
)
def test_without_any_network(run_local: RunLocal, tmp_path: Path, builder: Builder) -> None:
    """What is locked and fetched is built as ever; what is not is refused as an index that does not answer."""
    home = {"RUN_LOCAL_HOME": str(tmp_path / "home"), "UV_HTTP_RETRIES": "0"}
    spec = make_spec(tmp_path, "x", "chardet==5.2.0")
    shutil.rmtree(builder.build_spec(spec).prefix or tmp_path / "none")
    command = ["unshare", "-rn", sys.executable, "-m", "executor.cli", "build", "--runtime", "process"]
    variables = {**run_local.variables, **home}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    make_spec(tmp_path, "y", "chardet==5.1.0")
    done = subprocess.run([*command, "y"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the package index does not answer" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
