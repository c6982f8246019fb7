"""Tasks in environments of different Python versions call each other: values pass, code does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments.test_interpreters import make_venv, remove_images, run
from tests.harness import Interpreter, MakeProject, RunLocal, find_interpreters

HOST = (3, 10)

FLOW = """
    import dataclasses
    import enum
    import pathlib
    import sys

    from executor import MissingModule, TaskEnvironment, TaskError

    there_env = TaskEnvironment("there", "envs/test-bridged-there/environment.yml")
    here_env = TaskEnvironment("here", "envs/test-bridged/environment.yml", depends_on=[there_env])


    class Colour(enum.Enum):
        RED = 1


    @dataclasses.dataclass
    class Point:
        x: float
        colour: Colour


    @there_env.task
    def echo(value):
        return {"value": value, "version": list(sys.version_info[:2])}


    @there_env.task
    def write(text: str) -> pathlib.Path:
        path = pathlib.Path("made.txt")
        path.write_text(text)
        return path


    @there_env.task
    def make_function():
        offset = 40
        return lambda x: x + offset


    @there_env.task
    def apply(function, x: int) -> int:
        return function(x)


    @there_env.task
    def fail():
        raise KeyError("gone")


    @here_env.task
    def work() -> dict:
        values = [None, True, 1, 2.5, "ü", b"\\0", (1, [2, {3}]), Point(1.5, Colour.RED), bytearray(200_000), 10**50]
        back = [echo(value)["value"] for value in values]
        result = {
            "versions": [list(sys.version_info[:2]), echo(1)["version"]],
            "equal": back == values,
            "file": write("text").read_text(),
            "by name": apply(len, [1, 2]) if False else apply(abs, -3),
        }
        try:
            fail()
        except TaskError as error:
            result["error"] = [error.code, repr(error.original)]
        try:
            apply(lambda x: x, 1)
        except TaskError as error:
            result["refused there"] = str(error)
        function = make_function()
        try:
            function(2)
        except MissingModule as error:
            result["refused here"] = str(error)
        result["passed on"] = apply(function, 2)
        return result
"""


def others() -> list[Interpreter]:
    """The newest Python that is not the host's, and ours."""
    found = [each for each in find_interpreters() if each.version > HOST]
    return [each for each in found if each.version == sys.version_info[:2] or each is found[-1]]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run-local on the oldest Python that it supports."""
    interpreter = next((each for each in find_interpreters() if each.version == HOST), None)
    if interpreter is None:
        pytest.skip("there is no Python 3.10 on this machine")
    folder = tmp_path_factory.mktemp("host") / "venv"
    make_venv(interpreter, folder)
    return folder


@pytest.fixture(scope="module", params=others(), ids=lambda each: ".".join(map(str, each.version)))
def channel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Interpreter, Path]:
    """Another interpreter, and a channel with its Python."""
    interpreter: Interpreter = request.param
    folder = tmp_path_factory.mktemp("channel")
    make_venv(interpreter, folder / "venv")
    spec = folder / "envs" / "any" / "environment.yml"
    spec.parent.mkdir(parents=True)
    spec.write_text("dependencies: [python]\n")
    made = subprocess.run(
        [folder / "venv/bin/run-local", "channel", "build", "--runtime", "process", "--output", folder / "channel"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "RUN_LOCAL_HOME": str(folder / "home")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return interpreter, folder / "channel"


# Two virtual environments, two Pythons and their environments, none of which another test has made.
@pytest.mark.slow
def test_values_pass_between_versions_and_code_does_not(
    host: Path, channel: tuple[Interpreter, Path], runtime: str, project: MakeProject, run_local: RunLocal
) -> None:
    """Everything that travels by name or as data; a function made on the spot is refused with the reason."""
    interpreter, folder = channel
    version = ".".join(map(str, interpreter.version))
    spec = f"channels: [{folder.as_uri()}]\ndependencies: [python={version}]\n"
    root = project({"flow.py": FLOW}, {"test-bridged": "dependencies: [python]\n", "test-bridged-there": spec})
    home = host.with_name("home")
    said = run(run_local, host / "bin/run-local", "work", "--runtime", runtime, "--json", cwd=root, home=home)
    assert said.code == 0, said.stderr
    result = said.document["result"]
    assert result["versions"] == [list(HOST), list(interpreter.version)]
    assert (result["equal"], result["file"], result["by name"]) == (True, "text", 3)
    assert result["error"] == ["KeyError", "KeyError('gone')"]
    assert f"travels as code of Python 3.10, which Python {version} cannot run" in result["refused there"]
    assert f"travels as code of Python {version}, which Python 3.10 cannot run" in result["refused here"]
    assert "at the top level of a module" in result["refused here"]
    assert result["passed on"] == 42
    if runtime == "docker":
        remove_images()
