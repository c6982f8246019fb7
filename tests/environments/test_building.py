"""Environments for real: solved with PyPI, installed, packed, loaded into the engine, and started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from executor import dockerd
from executor.environments import Builder, read_spec
from executor.environments.archive import archive, image_config, unpack_layers
from executor.environments.image import image_tag
from executor.environments.lock import read_lock
from executor.environments.spec import Spec, unite
from executor.errors import BuildError, LockError
from tests.harness import MakeProject, RunLocal

SMALL = """\
channels: [conda-forge]
dependencies:
  - python >=3.10
  - pip
  - pip:
      - idna==3.10
      - chardet==5.2.0
"""


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """A small environment with a console script."""
    path = tmp_path / "envs" / "test-small" / "environment.yml"
    path.parent.mkdir(parents=True)
    path.write_text(SMALL)
    return read_spec(path, "test-small")


@pytest.fixture
def own_home(tmp_path: Path) -> Path:
    """A home with nothing in it, in a folder whose name is a trap."""
    path = tmp_path / "höme with space"
    (path / "tmp").mkdir(parents=True)
    return path


@pytest.fixture
def docker_builder(home: Path, engine: docker.DockerClient, own_home: Path) -> Iterator[Builder]:
    """Builds images in the home of its own; they are removed afterwards. The base is the session's."""
    shutil.copytree(home / "bases", own_home / "bases", dirs_exist_ok=True) if (home / "bases").exists() else None
    builder = Builder("docker", own_home, lambda *_: None)
    yield builder
    builder.close()
    for image in engine.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-small"}):
        engine.api.remove_image(image["Id"], force=True)


def test_the_same_lock_gives_the_same_image(
    docker_builder: Builder, spec: Spec, own_home: Path, engine: docker.DockerClient
) -> None:
    """After the image and every cache are gone, the image that is built again has the id that the first one had."""
    first = docker_builder.build_spec(spec)
    began = time.monotonic()
    assert docker_builder.build_spec(spec) == first
    assert time.monotonic() - began < 1  # a look at the engine, not a build
    lock = first.lock.read_bytes()
    engine.api.remove_image(str(first.image), force=True)
    for folder in ("packages", "channel", "locks", "layers"):
        shutil.rmtree(own_home / folder)
    again = docker_builder.build_spec(spec)
    assert again.lock.read_bytes() == lock
    assert (again.image, again.key) == (first.image, first.key)


def test_an_image_is_what_its_label_says_and_runs(
    docker_builder: Builder, spec: Spec, engine: docker.DockerClient
) -> None:
    """Tag, labels and PATH; its Python finds the packages, and its scripts start it; all bytecode is trusted as it is."""
    made = docker_builder.build_spec(spec)
    assert made.image is not None
    found = engine.api.inspect_image(image_tag("test-small", made.key))  # type: ignore[no-untyped-call]
    assert found["Config"]["Labels"][f"{dockerd.LABEL}.key"] == made.key
    assert found["Created"].startswith("1970-")
    code = (
        "import chardet, ctypes, glob, idna, sqlite3, ssl, sys\n"
        "flags = {open(name, 'rb').read(8)[4] for name in glob.glob('/opt/env/lib/**/*.pyc', recursive=True)}\n"
        "print(sys.prefix, idna.__version__, flags)"
    )
    assert dockerd.output_of(engine, made.image, ["python", "-I", "-c", code]).split("\n")[0] == "/opt/env 3.10 {1}"
    assert "chardetect 5.2.0" in dockerd.output_of(engine, made.image, ["chardetect", "--version"])
    assert dockerd.output_of(engine, made.image, ["head", "-1", "/opt/env/bin/chardetect"]) == "#!/opt/env/bin/python\n"


def test_an_engine_that_wants_every_layer_gets_them(
    docker_builder: Builder, spec: Spec, engine: docker.DockerClient, tmp_path: Path
) -> None:
    """The layers that an engine saves can be sent again with a layer of ours, as one archive."""
    made = docker_builder.build_spec(spec)
    assert made.image is not None
    dockerd.save(engine, made.image, tmp_path / "saved.tar")
    layers = unpack_layers(tmp_path / "saved.tar", tmp_path)
    found = engine.api.inspect_image(made.image)  # type: ignore[no-untyped-call]
    assert [layer.digest for layer in layers] == found["RootFS"]["Layers"]
    label = {dockerd.LABEL: "environment", f"{dockerd.LABEL}.environment": "test-small", "again": "yes"}
    config = image_config(layers, variables={}, labels=label)
    dockerd.load(engine, archive(config, "run-local/test-small:again", layers))
    assert "Python 3" in dockerd.output_of(engine, "run-local/test-small:again", ["/opt/env/bin/python", "--version"])


def test_a_lock_is_conda_locks_own_format(own_home: Path, spec: Spec) -> None:
    """The tool itself reads it, and writes from it what conda installs; importing it takes seconds, so not in here."""
    builder = Builder("process", own_home, lambda *_: None)
    _, locked = builder.lock(spec)
    code = (
        "import sys; from conda_lock.lockfile import parse_conda_lock_file; import pathlib\n"
        "lock = parse_conda_lock_file(pathlib.Path(sys.argv[1]))\n"
        "print(sorted((p.name, p.manager) for p in lock.package if p.name in ('idna', 'python')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(locked.path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[('idna', 'pip'), ('python', 'conda')]", done.stderr


def test_what_cannot_be_solved_names_who_asked(own_home: Path, tmp_path: Path) -> None:
    """The solver's reason, the requirement, and for a union the environments that disagree."""
    specs = []
    for name, version in (("old", "3.9"), ("new", "3.10")):
        path = tmp_path / f"{name}.yml"
        path.write_text(SMALL.replace("idna==3.10", f"idna=={version}"))
        specs.append(read_spec(path, name))
    with pytest.raises(LockError, match="environment `both` cannot be solved") as caught:
        Builder("process", own_home, lambda *_: None).lock(unite("both", specs))
    assert "`old` asks for `idna==3.9`" in caught.value.why
    assert "`new` asks for `idna==3.10`" in caught.value.why
    assert "depends_on" in caught.value.hint
    assert not list(own_home.glob("locks/*/*"))


def test_find_links_that_pip_is_configured_with_are_honoured(
    own_home: Path, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel in a folder of the user's is taken, with a digest of our own."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(wheels), "idna==3.10"]
    subprocess.run(download, check=True, capture_output=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    made = Builder("process", own_home, lambda *_: None).build_spec(spec)
    [idna] = [package for package in read_lock(made.lock).packages if package.name == "idna"]
    assert len(idna.sha256) == 64
    assert made.prefix is not None
    code = "import idna; print(idna.__version__)"
    assert subprocess.run(
        [made.prefix / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_a_build_that_is_killed_leaves_nothing_that_is_trusted(
    own_home: Path, project: MakeProject, run_local: RunLocal
) -> None:
    """Kill -9 in the middle of installing: no prefix has a name, and the next build makes it and clears the rest away."""
    root = project({}, {"test-small": SMALL})
    process = run_local.start("build", "--runtime", "process", cwd=root, env={"RUN_LOCAL_HOME": str(own_home)})
    assert process.stderr is not None
    for line in process.stderr:
        if "installing" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not [path for path in own_home.glob("prefixes/*") if path.is_dir()]
    done = run_local("build", "--runtime", "process", cwd=root, env={"RUN_LOCAL_HOME": str(own_home)})
    assert done.code == 0, done.stderr
    [prefix] = [path for path in own_home.glob("prefixes/*") if path.is_dir()]
    assert (
        "chardetect"
        in subprocess.run([prefix / "bin/chardetect", "--version"], capture_output=True, text=True, check=True).stdout
    )
    assert not list(own_home.glob("tmp/*"))


def test_a_damaged_package_is_refused_by_name(own_home: Path, spec: Spec) -> None:
    """An archive of this machine that is not the one that was locked is not installed."""
    builder = Builder("process", own_home, lambda *_: None)
    builder.lock(spec)
    [package] = own_home.glob("channel/*/linux-64/python-*.conda")
    data = bytearray(package.read_bytes())
    data[len(data) // 2] ^= 1
    package.write_bytes(data)
    with pytest.raises(BuildError, match="the archive of `python` is not the one that was locked"):
        builder.build_spec(spec)
    assert not [path for path in own_home.glob("prefixes/*") if path.is_dir()]


def test_without_network_the_reason_is_said(own_home: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that does not answer ends in an error of ours, soon, and no lock is left."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    began = time.monotonic()
    with pytest.raises(LockError, match="cannot be solved"):
        Builder("process", own_home, lambda *_: None).lock(spec)
    assert time.monotonic() - began < 60
    assert not list(own_home.glob("locks/*/*"))


def test_the_demos_environments_are_in_conflict() -> None:
    """Two environments of the demo pin versions of one package that cannot be installed together."""
    root = Path(__file__).resolve().parent.parent.parent
    pins = {name: read_spec(root / f"envs/{name}/environment.yml", name).pip for name in ("alphafold", "visualization")}
    numpy = {name: [pin for pin in pip if pin.startswith("numpy==")] for name, pip in pins.items()}
    assert all(numpy.values())
    assert numpy["alphafold"] != numpy["visualization"]


def test_one_environment_for_both_is_explained(own_home: Path) -> None:
    """Who asks for what, with the lines, and the ways out, in words that can be typed."""
    root = Path(__file__).resolve().parent.parent.parent
    names = ("alphafold", "visualization")
    both = unite("both", [read_spec(root / f"envs/{name}/environment.yml", name, root) for name in names])
    with pytest.raises(LockError, match="`both` cannot be solved") as caught:
        Builder("process", own_home, lambda *_: None).lock(both)
    for part in (
        "numpy==2.2.6",
        "numpy==1.26.4",
        "envs/alphafold/environment.yml:",
        "envs/visualization/environment.yml:",
    ):
        assert part in caught.value.why
    for part in ("`depends_on`", "reference_task(", "opaque handles"):
        assert part in caught.value.hint
