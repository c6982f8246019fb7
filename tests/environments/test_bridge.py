"""conda requirements where no conda channel answers: packages made of wheels, locked, built and started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from executor import dockerd
from executor.environments import Builder, Lock, Spec, read_spec
from executor.environments.lock import read_lock
from executor.errors import LockError
from tests.environments.small import make_wheel
from tests.harness import RunLocal

#: Nobody serves it; so a test does not depend on whether conda's own channels can be reached.
NOWHERE = "http://127.0.0.1:9/none"

MakeSpec = Callable[..., Spec]


@pytest.fixture
def spec_of(tmp_path: Path) -> MakeSpec:
    """Makes specifications, in the usual place of a project."""

    def make(*dependencies: object, name: str = "test-bridge") -> Spec:
        path = tmp_path / "envs" / name / "environment.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"channels": [NOWHERE], "dependencies": dependencies}))
        return read_spec(path, name)

    return make


@pytest.fixture
def own_home(tmp_path: Path) -> Path:
    """A home with nothing in it."""
    (tmp_path / "home/tmp").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def told() -> list[str]:
    """What was said while environments were made."""
    return []


@pytest.fixture
def builder(own_home: Path, told: list[str]) -> Builder:
    """Builds prefixes there."""
    return Builder("process", own_home, lambda _environment, _step, detail, *_: told.append(detail))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of all indexes."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder.mkdir()
    return folder


@pytest.fixture
def session_builder(runtime: str, home: Path, own_home: Path, told: list[str]) -> Iterator[Builder]:
    """Builds for each runtime, in an own home, with the session's base; images are removed afterwards."""
    if (home / "bases").exists():
        shutil.copytree(home / "bases", own_home / "bases")
    builder = Builder(runtime, own_home, lambda _environment, _step, detail, *_: told.append(detail))
    yield builder
    builder.close()
    if runtime == "docker":
        client: docker.DockerClient = dockerd.connect()
        for image in client.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-bridge"}):
            client.api.remove_image(image["Id"], force=True)
        client.close()


def managers(lock: Lock) -> dict[str, list[str]]:
    """Package → who installs it; two of them would be a mistake."""
    found: dict[str, list[str]] = {}
    for package in lock.packages:
        found.setdefault(package.name, []).append(package.manager)
    return found


def test_an_environment_from_conda_requirements_runs(
    session_builder: Builder, runtime: str, spec_of: MakeSpec, told: list[str]
) -> None:
    """A binary package, a pure one with a script, another name; what conda brings is not installed by pip again."""
    spec = spec_of("python", "markupsafe=3", "pygments >=2.18,<3.0a0", "typing-extensions", {"pip": ["jinja2 >=3"]})
    built = session_builder.build_spec(spec)
    locked = read_lock(built.lock)
    assert locked.bridge
    assert managers(locked) == {
        **{name: ["conda"] for name in ("markupsafe", "pip", "pygments", "python")},
        **{name: ["conda"] for name in ("typing-extensions", "typing_extensions")},
        "jinja2": ["pip"],
    }
    assert any("no conda channel answers" in text for text in told)
    code = "import jinja2, markupsafe._speedups, typing_extensions; print(jinja2.Template('{{ x|e }}').render(x='<'))"
    if runtime == "docker":
        client: docker.DockerClient = dockerd.connect()
        said = dockerd.output_of(client, str(built.image), ["python", "-I", "-c", code])
        script = dockerd.output_of(client, str(built.image), ["pygmentize", "-V"])
        client.close()
    else:
        assert built.prefix is not None
        said, script = (
            subprocess.run([built.prefix / "bin" / name, *arguments], capture_output=True, text=True, check=True).stdout
            for name, *arguments in (["python", "-I", "-c", code], ["pygmentize", "-V"])
        )
    assert said == "&lt;\n"
    assert script.startswith("Pygments version 2.")


def test_conda_lock_reads_the_lock(builder: Builder, spec_of: MakeSpec, tmp_path: Path) -> None:
    """The tool itself, which prints it as files for conda."""
    _, locked = builder.lock(spec_of("python", "markupsafe", {"pip": ["jinja2"]}))
    tool = str(Path(sys.executable).with_name("conda-lock"))
    command = [tool, "render", "--kind", "env", "--kind", "explicit", "-p", "linux-64", str(locked.path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    explicit = (tmp_path / "conda-linux-64.lock").read_text()
    [markupsafe] = [package for package in locked.packages if package.name == "markupsafe"]
    assert f"{markupsafe.url}#{markupsafe.md5}" in explicit
    assert "jinja2" in (tmp_path / "conda-linux-64.lock.yml").read_text()


def test_the_answer_depends_on_the_request_only(builder: Builder, spec_of: MakeSpec, wheels: Path) -> None:
    """Not on what others had made before; and what they made is used again, or made again where it is damaged."""
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "envtest_one", version)
    spec = spec_of("python", "envtest-one")
    _, first = builder.lock(spec)
    before = first.path.read_bytes()
    shutil.rmtree(first.path.parent)
    make_wheel(wheels, "envtest_one", "3.0")
    _, newer = builder.lock(spec_of("python", "envtest-one >=3", name="other"))
    assert managers(newer)["envtest-one"] == ["conda"]
    (wheels / "envtest_one-3.0-py3-none-any.whl").unlink()
    [package] = [Path(each.url.removeprefix("file://")) for each in first.packages if each.name == "envtest-one"]
    package.write_bytes(package.read_bytes()[:-10])
    _, again = builder.lock(spec)
    assert again.path.read_bytes() == before
    assert builder.build_spec(spec).prefix


def test_extras_bring_what_they_ask_for(builder: Builder, spec_of: MakeSpec, wheels: Path) -> None:
    """Also where one extra asks for another; an unwanted one brings nothing."""
    make_wheel(wheels, "envtest_app", "1.0", metadata=["Requires-Dist: envtest_lib[all]>=1"])
    for name in ("fast", "small", "other"):
        make_wheel(wheels, f"envtest_{name}", "1.0")
    more = [f"Requires-Dist: envtest_{name}; extra == '{name}'" for name in ("fast", "small", "other")]
    every = "Requires-Dist: envtest_lib[fast,small]; extra == 'all'"
    make_wheel(wheels, "envtest_lib", "1.5", metadata=[*more, every])
    _, locked = builder.lock(spec_of("python", "envtest-app"))
    assert set(managers(locked)) == {
        *("envtest-app", "envtest-fast", "envtest-lib", "envtest-small", "python"),
        *(f"envtest-lib-with-{extra}" for extra in ("all", "fast", "small")),
    }


def test_pip_and_conda_that_want_different_versions_are_refused(
    builder: Builder, spec_of: MakeSpec, wheels: Path
) -> None:
    """With both lines."""
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "envtest_one", version)
    with pytest.raises(LockError, match="cannot be solved") as caught:
        builder.lock(spec_of("python", "envtest-one 1.*", {"pip": ["envtest-one >=2"]}))
    assert "`test-bridge` asks for `envtest-one 1.*`" in caught.value.why
    assert "`test-bridge` asks for `envtest-one >=2`" in caught.value.why


@pytest.mark.parametrize(
    ("requirement", "why"),
    [
        ("gcc", "`test-bridge` asks for `gcc`"),
        ("envtest-nowhere", "has no `envtest-nowhere`"),
        ("docopt", "only source to build it from"),
    ],
)
def test_what_is_no_wheel_is_refused(builder: Builder, spec_of: MakeSpec, requirement: str, why: str) -> None:
    """By name, with the reason, and with what to do."""
    with pytest.raises(LockError, match=f"`{requirement}` cannot be had without a conda channel") as caught:
        builder.lock(spec_of("python", requirement))
    assert why in caught.value.why
    assert "`pip:`" in caught.value.hint


def test_two_at_once_make_a_package_once(
    spec_of: MakeSpec, wheels: Path, own_home: Path, tmp_path: Path, run_local: RunLocal
) -> None:
    """Whoever comes second waits, says so, and finds it; two specifications, so that they do not share a lock."""
    big = {f"envtest_big/{number}.txt": str(number) * 2**20 for number in range(40)}
    make_wheel(wheels, "envtest_big", "1.0", more=big)
    for name, more in (("a", []), ("b", ["pip"])):
        spec_of("python", "envtest-big", *more, name=name)
    home = {"RUN_LOCAL_HOME": str(own_home), "PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1"}
    builds = [run_local.start("build", name, "--runtime", "process", cwd=tmp_path, env=home) for name in "ab"]
    said = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    assert sum("making envtest-big" in text for text in said) == 1
    assert any("another run-local makes packages" in text for text in said)


def test_a_channel_for_a_machine_without_a_network(
    spec_of: MakeSpec, wheels: Path, own_home: Path, tmp_path: Path, run_local: RunLocal
) -> None:
    """What `channel build` writes serves as a mirror, and gives the same environment; `channel list` names it."""
    make_wheel(wheels, "envtest_one", "1.0", script="envtest-one")
    spec_of("python", "envtest-one")
    home = {"RUN_LOCAL_HOME": str(own_home), "PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1"}
    done = run_local("channel", "build", "--runtime", "process", "--output", "mirror", cwd=tmp_path, env=home)
    assert done.code == 0, done.stderr
    assert sorted(path.name.rsplit("-", 2)[0] for path in (tmp_path / "mirror").rglob("*.conda")) == [
        "envtest-one",
        "python",
    ]
    listed = json.loads(run_local("channel", "list", "--json", cwd=tmp_path, env=home).stdout)
    assert {each["name"] for each in listed} == {"envtest-one", "pip", "python"}
    assert all(Path(each["path"]).stat().st_size == each["size"] for each in listed)
    assert "envtest-one  1.0" in run_local("channel", "list", cwd=tmp_path, env=home).stdout
    first = Builder("process", own_home, lambda *_: None).build_spec(spec_of("python", "envtest-one"))
    shutil.rmtree(wheels)
    elsewhere = {"RUN_LOCAL_HOME": str(tmp_path / "elsewhere"), "RUN_LOCAL_MIRRORS": f"{NOWHERE}={tmp_path / 'mirror'}"}
    done = run_local("build", "--runtime", "process", cwd=tmp_path, env=elsewhere)
    assert done.code == 0, done.stderr
    prefix = tmp_path / "elsewhere/prefixes" / first.key
    tool = subprocess.run([prefix / "bin/envtest-one"], capture_output=True, text=True, check=True)
    assert tool.stdout == "envtest_one 1.0\n"
