"""What is kept of environments is checked when it is used: archives, prefixes, locks; and what is kept needs no network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.environments import Builder, Built
from executor.environments.spec import Spec, read_spec
from executor.errors import BuildError, LockError
from tests.environments.small import make_wheel
from tests.harness import WITHOUT_NETWORK, RunLocal

Build = Callable[[], Built]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spec, Builder]:
    """A home with an environment that holds one small wheel, which a server offers no more."""
    folder = tmp_path_factory.mktemp("keeping")
    (folder / "home/tmp").mkdir(parents=True)
    wheel = make_wheel(folder / "wheels", "envtest_tool", "1.5", script="envtest-tool")
    path = folder / "envs/x/environment.yml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"dependencies": ["python", {"pip": [f"envtest-tool @ {wheel.as_uri()}"]}]}))
    spec = read_spec(path, "x")
    builder = Builder("process", folder / "home", lambda *_: None)
    builder.build_spec(spec)
    return folder, spec, builder


def tool_of(built: Built) -> str:
    assert built.prefix is not None
    done = subprocess.run([built.prefix / "bin/envtest-tool"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_prefix_that_was_changed_is_made_anew(made: tuple[Path, Spec, Builder]) -> None:
    """Also where the change went through a hard link into the cache: the archive is unpacked again."""
    _, spec, builder = made
    built = builder.build_spec(spec)
    assert built.prefix is not None
    [module] = built.prefix.glob("lib/python*/site-packages/envtest_tool.py")
    with module.open("a") as file:
        file.write("VERSION = 'changed'\n")
    assert tool_of(builder.build_spec(spec)) == "envtest_tool 1.5"
    module.unlink()
    assert tool_of(builder.build_spec(spec)) == "envtest_tool 1.5"
    shutil.rmtree(built.prefix / "lib")
    assert tool_of(builder.build_spec(spec)) == "envtest_tool 1.5"


def test_a_damaged_archive_is_set_aside_and_fetched_again(made: tuple[Path, Spec, Builder]) -> None:
    """One flipped byte is found, said, and kept for whoever wants to know."""
    folder, spec, _ = made
    said: list[str] = []
    builder = Builder("process", folder / "home", lambda _, __, detail, ___=None: said.append(detail))
    built = builder.build_spec(spec)
    [archive] = (folder / "home/packages/archives").glob("*/envtest_tool-*.whl")
    data = bytearray(archive.read_bytes())
    data[40] ^= 1
    archive.write_bytes(data)
    assert built.prefix is not None
    shutil.rmtree(built.prefix)
    shutil.rmtree(folder / "home/packages/uv")
    assert tool_of(builder.build_spec(spec)) == "envtest_tool 1.5"
    assert "envtest_tool-1.5-py3-none-any.whl was damaged on this disk: fetching it again" in said
    [aside] = (folder / "home/packages/quarantine").iterdir()
    assert aside.read_bytes() == bytes(data)
    shutil.rmtree(folder / "home/packages/quarantine")


def test_what_is_here_is_enough(made: tuple[Path, Spec, Builder]) -> None:
    """The server is gone, and so are the prefix and every cache; the archives are not."""
    folder, spec, builder = made
    built = builder.build_spec(spec)
    assert built.prefix is not None
    shutil.rmtree(built.prefix)
    for name in ("uv", "conda"):
        shutil.rmtree(folder / "home/packages" / name)
    (folder / "wheels").rename(folder / "gone")
    try:
        assert tool_of(builder.build_spec(spec)) == "envtest_tool 1.5"
    finally:
        (folder / "gone").rename(folder / "wheels")


def test_a_lock_that_was_edited_is_refused(made: tuple[Path, Spec, Builder]) -> None:
    """Another version or digest, or one package less, is not what was solved."""
    folder, spec, builder = made
    [path] = folder.glob("home/locks/*/conda-lock.yml")
    text = path.read_text()
    for edited in (text.replace("'1.5'", "'1.6'"), text.replace("sha256: ", "sha256: 0", 1)):
        assert edited != text
        path.write_text(edited)
        with pytest.raises(LockError, match="changed by hand"):
            builder.build_spec(spec)
    path.write_text(text)


def test_an_environment_that_its_own_check_refuses_has_no_name(
    made: tuple[Path, Spec, Builder], tmp_path: Path
) -> None:
    """`verify.py` beside the specification runs in the environment; what it raises is the reason."""
    folder, spec, builder = made
    shutil.copytree(folder / "envs/x", tmp_path / "envs/x")
    copy = read_spec(tmp_path / "envs/x/environment.yml", "x")
    for prefix in [path for path in (folder / "home/prefixes").iterdir() if path.is_dir()]:
        shutil.rmtree(prefix)
    check = tmp_path / "envs/x/verify.py"
    check.write_text("import envtest_tool\nassert envtest_tool.VERSION == '2', envtest_tool.VERSION\n")
    with pytest.raises(BuildError, match="environment `x` does not work") as caught:
        builder.build_spec(copy)
    assert "AssertionError: 1.5" in caught.value.why
    assert str(check) in caught.value.hint
    assert not [path for path in (folder / "home/prefixes").iterdir() if path.is_dir()]
    check.write_text("import envtest_tool\nassert envtest_tool.VERSION == '1.5'\n")
    assert tool_of(builder.build_spec(copy)) == "envtest_tool 1.5"
    assert spec.digest == copy.digest


@pytest.mark.skipif(not WITHOUT_NETWORK, reason="no network namespaces here")
def test_offline_says_all_that_is_missing(
    made: tuple[Path, Spec, Builder], tmp_path: Path, run_local: RunLocal
) -> None:
    """Before anything is made, with the command that fetches it; what is here is built without a network interface."""
    folder, _, __ = made
    shutil.copytree(folder / "envs", tmp_path / "envs")
    script = str(Path(sys.executable).with_name("run-local"))
    command = [*WITHOUT_NETWORK, script, "--offline", "build", "--runtime", "process"]
    variables = {**run_local.variables, "RUN_LOCAL_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("y", "z"):
        (tmp_path / "envs" / name).mkdir()
        (tmp_path / "envs" / name / "environment.yml").write_text(f"dependencies: [python, {{pip: [none-{name}]}}]\n")
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "`y`: a lock" in done.stderr
    assert "`z`: a lock" in done.stderr
    assert "`run-local build y z`" in done.stderr


def test_a_lock_is_checked_and_moved_package_by_package(tmp_path: Path, run_local: RunLocal) -> None:
    """`--check` names what changed and what that would change; `--update` moves one package and leaves the others."""
    wheels = tmp_path / "wheels"
    for name in ("envtest_one", "envtest_two"):
        make_wheel(wheels, name, "1.0")
    spec = tmp_path / "envs/x/environment.yml"
    spec.parent.mkdir(parents=True)
    spec.write_text("dependencies:\n  - python\n  - pip:\n      - envtest-one\n      - envtest-two\n")
    variables = {"PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1", "RUN_LOCAL_HOME": str(tmp_path / "home")}

    def lock(*arguments: str) -> tuple[int, str]:
        done = run_local("lock", "--runtime", "process", *arguments, cwd=tmp_path, env=variables)
        assert "Traceback" not in done.stderr
        return done.code, " ".join((done.stdout + done.stderr).split())

    assert lock("--check")[0] == 3
    assert lock()[0] == 0
    assert lock("--check")[0] == 0
    for name in ("envtest_one", "envtest_two"):
        make_wheel(wheels, name, "2.0")
    assert lock("--check")[0] == 0
    code, said = lock("--update", "envtest-one")
    assert code == 0
    assert "envtest-one 1.0 2.0" in said
    assert "envtest-two" not in said
    code, said = lock("--update", "envtest-on")
    assert code == 2
    assert "did you mean `envtest-one`" in said
    spec.write_text(spec.read_text().replace("envtest-two", "envtest-two ==2.0"))
    before = spec.with_name("conda-lock.yml").read_text()
    code, said = lock("--check")
    assert code == 3
    assert "- envtest-two + envtest-two ==2.0" in said
    assert "envtest-two 1.0 2.0" in said
    assert spec.with_name("conda-lock.yml").read_text() == before
    done = run_local("build", "--runtime", "process", cwd=tmp_path, env=variables)
    assert done.code == 3
    assert "out of date" in done.stderr
