"""Locks that real solvers make: the same twice, with pip's own settings, and refused in words that help."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.environments import Builder, Request, read_spec
from executor.environments.lock import read_lock
from executor.environments.spec import unite
from executor.errors import BuildError, LockError
from tests.environments.small import make_spec, make_wheel
from tests.harness import WITHOUT_NETWORK, RunLocal


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of these tests' own; they share its bridge channel, and no lock."""
    home = tmp_path_factory.mktemp("home")
    (home / "tmp").mkdir()
    return home


@pytest.fixture
def builder(own_home: Path) -> Builder:
    """Builds prefixes there."""
    return Builder("process", own_home, lambda *_: None)


def test_the_same_request_gives_the_same_lock(builder: Builder, own_home: Path, tmp_path: Path) -> None:
    """To the byte, also after the bridge channel and every cache were made anew."""
    spec = make_spec(tmp_path, "x", "chardet==5.2.0")
    _, locked = builder.lock(spec)
    first = locked.path.read_bytes()
    [channel] = (own_home / "channel").iterdir()
    packages = {path.name: path.read_bytes() for path in channel.rglob("*") if path.is_file()}
    for folder in ("channel", "packages", "locks"):
        shutil.rmtree(own_home / folder)
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
    builder: Builder, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest is checked, and no prefix is made of it."""
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "envtest_linked", "1.5")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    spec = make_spec(tmp_path, "x", "envtest-linked")
    builder.lock(spec)
    shutil.rmtree(own_home / "packages")
    built = set(own_home.glob("prefixes/*"))
    make_wheel(wheels, "envtest_linked", "1.5", script="envtest-linked")
    with pytest.raises(BuildError, match="is not the one that was locked") as caught:
        builder.build_spec(spec)
    assert "envtest-linked" in caught.value.what
    assert not [path for path in set(own_home.glob("prefixes/*")) - built if path.is_dir()]


def test_an_unknown_version_of_python_is_refused_with_who_asked(builder: Builder, tmp_path: Path) -> None:
    """The conda solver's reason, and the line of the specification."""
    path = tmp_path / "environment.yml"
    path.write_text("dependencies: [python ==2.6]\n")
    with pytest.raises(LockError, match="environment `x` cannot be solved") as caught:
        builder.lock(read_spec(path, "x"))
    assert "`x` asks for `python ==2.6`" in caught.value.why


def test_all_who_asked_for_what_cannot_be_are_named(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own line, also where two ask for the same; names are compared as PyPI does."""
    for version in ("1", "2"):
        make_wheel(tmp_path / "wheels", "envtest_both", version)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    asking = {"low": "envtest_both ==1", "middle": "envtest_both ==1", "high": "Envtest.Both >=2"}
    both = unite("high", [make_spec(tmp_path, name, line) for name, line in asking.items()])
    with pytest.raises(LockError, match="environment `high` cannot be solved") as caught:
        builder.lock(both)
    assert caught.value.why.splitlines()[-3:] == [
        f"`{name}` asks for `{asking[name]}` (envs/{name}/environment.yml:1)" for name in asking
    ]


def test_commands_tell_places_from_the_root(run_local: RunLocal, tmp_path: Path) -> None:
    """Whatever the folder of the project is called."""
    root = tmp_path / "envs"
    (root / "envs").mkdir(parents=True)
    (root / "envs/x.yml").write_text("dependencies:\n  - python\n  - numpy = = 2\n")
    for command in (["lock", "--check"], ["build"], ["envs"]):
        done = run_local(*command, "--runtime", "process", cwd=root)
        assert "why: envs/x.yml:3: `numpy = = 2` compares twice" in done.stderr


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


@pytest.mark.skipif(not WITHOUT_NETWORK, reason="no network namespaces here")
def test_without_any_network(run_local: RunLocal, own_home: Path, tmp_path: Path, builder: Builder) -> None:
    """What is locked and fetched is built as ever; what is not is refused as an index that does not answer."""
    home = {"RUN_LOCAL_HOME": str(own_home), "UV_HTTP_RETRIES": "0"}
    spec = make_spec(tmp_path, "x", "chardet==5.2.0")
    shutil.rmtree(builder.build_spec(spec).prefix or tmp_path / "none")
    script = str(Path(sys.executable).with_name("run-local"))
    command = [*WITHOUT_NETWORK, script, "build", "--runtime", "process"]
    variables = {**run_local.variables, **home}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    make_spec(tmp_path, "y", "chardet==5.1.0")
    done = subprocess.run([*command, "y"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the package index does not answer" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.fixture
def mirror(builder: Builder, own_home: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A conda channel that a server offers as a plain mirror does: the folder, and its address."""
    builder.lock(make_spec(tmp_path, "mirrored"))
    [channel] = (own_home / "channel").iterdir()
    shutil.copytree(channel, tmp_path / "mirror")
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    server = subprocess.Popen(
        command, cwd=tmp_path / "mirror", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with server:
        assert server.stdout
        yield tmp_path / "mirror", server.stdout.readline().partition("(")[2].partition("/)")[0]
        server.kill()


def test_a_channel_of_a_mirror_is_used_and_its_archives_are_checked(mirror: tuple[Path, str], tmp_path: Path) -> None:
    """No bridge then; a channel beside it that does not answer is left out, aloud; a damaged archive is refused."""
    folder, address = mirror
    said: list[str] = []
    home = tmp_path / "home"  # where nothing has been fetched yet
    (home / "tmp").mkdir(parents=True)
    builder = Builder("process", home, lambda _environment, _step, detail, *_: said.append(detail))
    path = tmp_path / "environment.yml"
    path.write_text(json.dumps({"channels": [address, "http://127.0.0.1:9/none"], "dependencies": ["python", "pip"]}))
    spec = read_spec(path, "x")
    _, locked = builder.lock(spec)
    assert not locked.bridge
    assert all(package.url.startswith(address) for package in locked.packages)
    assert any("left out: http://127.0.0.1:9/none" in line for line in said)
    [archive] = folder.glob("linux-64/python-*")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(BuildError, match="is not the one that was locked") as caught:
        builder.build_spec(spec)
    assert "python" in caught.value.what
    archive.write_bytes(whole)
    prefix = builder.build_spec(spec).prefix
    assert prefix is not None
    assert "pip" in subprocess.run([prefix / "bin/pip", "--version"], capture_output=True, text=True, check=True).stdout


def test_a_lock_from_a_mirror_holds_where_there_is_another(
    mirror: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the channel that the mirror stands for; who has that somewhere else takes the same packages from there."""
    folder, address = mirror
    spec = make_spec(tmp_path, "x")
    assert spec.path is not None
    committed = spec.path.with_name("conda-lock.yml")
    monkeypatch.setenv("RUN_LOCAL_MIRRORS", f"conda-forge={folder}")
    for home in ("one", "two"):
        (tmp_path / home / "tmp").mkdir(parents=True)
    _, locked = Builder("process", tmp_path / "one", lambda *_: None).lock(spec, Request(path=committed))
    assert not locked.bridge
    assert all("/conda-forge/" in each.url and not each.url.startswith("file:") for each in locked.packages)
    assert str(folder) not in committed.read_text()
    monkeypatch.setenv("RUN_LOCAL_MIRRORS", f"conda-forge={address}")
    built = Builder("process", tmp_path / "two", lambda *_: None).build_spec(spec)
    assert (built.lock, built.python) == (committed, locked.python)


def test_a_channel_that_there_is_not_is_no_reason_for_the_bridge(
    mirror: tuple[Path, str], builder: Builder, tmp_path: Path
) -> None:
    """Whether its server says so or it is a folder; a name that is written wrongly shall not be met with something else."""
    for channel in (f"{mirror[1]}/conda-forgee", str(tmp_path / "none")):
        path = tmp_path / "environment.yml"
        path.write_text(json.dumps({"channels": [channel], "dependencies": ["python"]}))
        with pytest.raises(LockError, match="there is no channel") as caught:
            builder.lock(read_spec(path, "x"))
        assert channel in caught.value.what


def test_a_mirror_that_is_configured_has_to_answer(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages of a site are not replaced in silence because its server is down."""
    monkeypatch.setenv("RUN_LOCAL_CHANNEL_ALIAS", "http://127.0.0.1:9")
    with pytest.raises(LockError, match="channel `conda-forge` does not answer") as caught:
        builder.lock(make_spec(tmp_path, "x", "envtest-none"))
    assert "http://127.0.0.1:9/conda-forge" in caught.value.why


def test_a_package_without_a_wheel_is_refused_with_a_way_out(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is built from source: the message says so, names the line that asked, and what to do."""
    source = tmp_path / "wheels/envtest_src-1.0"
    source.mkdir(parents=True)
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: envtest-src\nVersion: 1.0\n")
    (source / "setup.py").write_text("from setuptools import setup\nsetup(name='envtest-src', version='1.0')\n")
    shutil.make_archive(str(source), "gztar", source.parent, source.name)
    monkeypatch.setenv("PIP_FIND_LINKS", str(source.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LockError, match="cannot be solved") as caught:
        builder.lock(make_spec(tmp_path, "x", "envtest-src"))
    assert "no usable wheels" in caught.value.why
    assert "`x` asks for `envtest-src` (envs/x/environment.yml:1)" in caught.value.why
    assert "`pip wheel envtest-src`" in caught.value.hint
