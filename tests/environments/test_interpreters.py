"""The bridge from every Python that can run run-local: Debian's own, which keeps its packages elsewhere, and others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import pytest

from executor import dockerd
from tests.harness import Finished, Interpreter, MakeProject, RunLocal, find_interpreters

SPEC = """\
dependencies:
  - python
  - pip:
      - chardet==5.2.0
"""

#: A task that imports what needs libraries that the bridge brings along, and tells where everything comes from.
FLOW = """\
import executor

low_env = executor.TaskEnvironment(name="test-bridged", image="envs/test-bridged/environment.yml")

@low_env.task
def low(number: int) -> dict:
    import bz2, ctypes, decimal, hashlib, lzma, sqlite3, ssl, subprocess, sys, sysconfig, uuid, zlib
    import chardet
    ssl.create_default_context()
    sqlite3.connect(":memory:").execute("select 1")
    places = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
    isolated = [sys.executable, "-I", "-c", "import sys; print(sys.path)"]
    return {
        "version": list(sys.version_info[:2]), "prefix": sys.prefix, "package": chardet.__file__,
        "purelib": sysconfig.get_path("purelib"), "libraries": sorted(places), "number": number,
        "path": eval(subprocess.run(isolated, capture_output=True, text=True, check=True).stdout),
        "script": subprocess.run(["chardetect", "--version"], capture_output=True, text=True, check=True).stdout,
    }

@low_env.task
def high(number: int = 4) -> dict:
    return low(number)
"""

OF_ANY_LINUX = ("ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "libresolv")


def other_interpreters() -> list[Interpreter]:
    """Debian's, and one of another version than ours; with RUN_LOCAL_EVERY_PYTHON=1 all that run-local supports."""
    found = {each.version: each for each in find_interpreters() if each.version >= (3, 10)}
    debian = Path("/usr/bin/python3")
    if debian.exists():
        code = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run([debian, "-I", "-c", code], capture_output=True, text=True, check=True)
        major, minor = done.stdout.split()
        found = {(int(major), int(minor)): Interpreter((int(major), int(minor)), debian)} | {
            version: each for version, each in found.items() if version != sys.version_info[:2]
        }
    return [*found.values()][: None if os.environ.get("RUN_LOCAL_EVERY_PYTHON") == "1" else 2]


def make_venv(interpreter: Interpreter, folder: Path) -> None:
    """Install run-local with that interpreter; wheels come from uv's cache."""
    uv = Path(sys.executable).with_name("uv")
    root = Path(__file__).resolve().parents[2]
    for arguments in (["venv", "--seed", "--python", interpreter.path, folder], ["pip", "install", "-e", root]):
        command = [str(uv), *map(str, arguments), *(["--python", str(folder)] if arguments[0] == "pip" else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=other_interpreters(), ids=lambda each: ".".join(map(str, each.version)))
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Interpreter, Path]:
    """An interpreter, and the folder of a virtual environment of it with run-local; its home lies beside that."""
    interpreter: Interpreter = request.param
    folder = tmp_path_factory.mktemp("python") / "venv"
    make_venv(interpreter, folder)
    return interpreter, folder


# A venv, a lock, a bridge and an environment for each interpreter; nothing of it can be shared between them.
@pytest.mark.slow
def test_a_workflow_runs_with_the_python_at_hand(
    installation: tuple[Interpreter, Path], runtime: str, project: MakeProject, run_local: RunLocal
) -> None:
    """Two tasks in an environment that is made from it: everything comes from there, and nothing from this machine."""
    interpreter, venv = installation
    home = venv.with_name("home")
    root = project({"flow.py": FLOW}, {"test-bridged": SPEC})
    said = run(run_local, venv / "bin/run-local", "high", "--runtime", runtime, "--json", cwd=root, home=home)
    assert said.code == 0, said.stderr
    found: dict[str, Any] = said.document["result"]
    assert (tuple(found["version"]), found["number"]) == (interpreter.version, 4)
    assert found["script"] == "chardetect 5.2.0\n"
    prefix = Path(found["prefix"])
    assert prefix == Path("/opt/env") or prefix.is_relative_to(home)
    places = [found["package"], found["purelib"], *found["path"]]
    places += [each for each in found["libraries"] if not Path(each).name.startswith(OF_ANY_LINUX)]
    assert [each for each in places if not Path(each).is_relative_to(prefix)] == []
    if runtime == "docker":
        remove_images()


def run(run_local: RunLocal, command: Path, *arguments: str, cwd: Path, home: Path) -> Finished:
    """Another installation's command, in the environment of ours."""
    variables = {**run_local.variables, "RUN_LOCAL_HOME": str(home)}
    done = subprocess.run([command, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    return Finished(code=done.returncode, stdout=done.stdout, stderr=done.stderr, seconds=0)


def remove_images() -> None:
    client: docker.DockerClient = dockerd.connect()
    for image in client.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-bridged"}):
        client.api.remove_image(image["Id"], force=True)
    client.close()
