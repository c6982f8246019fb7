"""Prefixes and images in the places that people have: long paths, paths with every character, two builds at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import docker

from executor import dockerd
from executor.environments import Builder, read_spec
from executor.environments.lock import read_lock
from executor.environments.prefix import make_prefix
from tests.environments.small import make_spec, make_wheel
from tests.harness import MakeProject, RunLocal

SPEC = """\
dependencies:
  - python
  - pip:
      - envtest-tool @ {wheel}
"""

FLOW = """\
import executor

low_env = executor.TaskEnvironment(name="test-places", image="envs/test-places/environment.yml")

@low_env.task
def low(number: int) -> list:
    import subprocess, sys
    import envtest_tool
    said = subprocess.run(["envtest-tool"], capture_output=True, text=True, check=True).stdout.strip()
    return [envtest_tool.VERSION, said, number]

@low_env.task
def high(number: int = 7) -> list:
    return low(number)
"""


def test_a_home_and_a_project_may_lie_anywhere(runtime: str, tmp_path: Path, run_local: RunLocal) -> None:
    """Two tasks run, and a package's script starts, whatever the path needs to be quoted or how long it is."""
    folder = tmp_path / f"mein projekt ä%20#1? {'long' * 30}"
    wheel = make_wheel(folder / "wheels", "envtest_tool", "1.5", script="envtest-tool")
    root = MakeProject(folder)({"flow.py": FLOW}, {"test-places": SPEC.format(wheel=wheel.as_uri())})
    done = run_local("high", "--runtime", runtime, "--json", cwd=root, env={"RUN_LOCAL_HOME": str(folder / "home")})
    assert done.code == 0, done.stderr
    assert done.document["result"] == ["1.5", "envtest_tool 1.5", 7]
    if runtime == "docker":
        client: docker.DockerClient = dockerd.connect()
        for image in client.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-places"}):
            client.api.remove_image(image["Id"], force=True)
        client.close()


def test_two_builds_at_once_make_it_once(tmp_path: Path, run_local: RunLocal) -> None:
    """Whoever comes second to a step waits, says so, and finds it done."""
    home = {"RUN_LOCAL_HOME": str(tmp_path / "home")}
    wheel = make_wheel(tmp_path, "envtest_tool", "1.5", script="envtest-tool")
    make_spec(tmp_path, "x", f"envtest-tool @ {wheel.as_uri()}")
    builds = [run_local.start("build", "--runtime", "process", cwd=tmp_path, env=home) for _ in range(2)]
    said = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    assert sum("no lock yet" in text for text in said) == 1
    assert sum("installing" in text for text in said) == 1
    assert any("another run-local" in text for text in said)
    [prefix] = [path for path in (tmp_path / "home/prefixes").iterdir() if path.is_dir()]
    tool = subprocess.run([prefix / "bin/envtest-tool"], capture_output=True, text=True, check=True)
    assert tool.stdout == "envtest_tool 1.5\n"


def test_what_a_prefix_holds_does_not_depend_on_where_it_was_made(tmp_path: Path) -> None:
    """The same files with the same content, but for the prefix that they name; also below a folder called `tests`."""
    homes = [tmp_path / "a", tmp_path / "tests/b"]
    for home in homes:
        (home / "tmp").mkdir(parents=True)
    path = tmp_path / "environment.yml"
    path.write_text("dependencies: [python, pip]\n")
    spec = read_spec(path, "x")
    built = Builder("process", homes[0], lambda *_: None).build_spec(spec)
    again = make_prefix(spec, read_lock(built.lock), built.key, home=homes[1], say=lambda *_: None)
    assert built.prefix is not None
    first, second = contents(built.prefix), contents(again)
    assert first.keys() == second.keys()
    assert [path for path, data in first.items() if data != second[path]] == []


def contents(prefix: Path) -> dict[Path, bytes]:
    """Every file, with another name for the prefix; of bytecode, which counts its characters, only that it is there."""
    return {
        file.relative_to(prefix): b"" if file.suffix == ".pyc" else file.read_bytes().replace(os.fsencode(prefix), b"P")
        for file in prefix.rglob("*")
        if file.is_file()
    }


def test_a_bridge_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """With the lock that names it, which is ours and not the user's; it comes out the same."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    path = tmp_path / "environment.yml"
    path.write_text("dependencies: [python]\n")
    builder = Builder("process", home, lambda *_: None)
    spec = read_spec(path, "x")
    _, first = builder.lock(spec)
    before = first.path.read_bytes()
    shutil.rmtree(home / "channel")
    _, again = builder.lock(spec)
    assert (again, again.path.read_bytes()) == (first, before)
    assert [path.name for path in home.glob("channel/*/linux-64/python-*")] == [
        each.url.rpartition("/")[2] for each in again.packages if each.name == "python"
    ]
