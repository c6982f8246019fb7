"""`run-local gc` for real: images, prefixes, archives and layers go, and what is used stays."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from executor import dockerd
from executor.environments import usage
from tests.environments.small import make_spec, make_wheel
from tests.harness import RunLocal

NAMES = ("test-old", "test-new")
LONG_AGO = 90 * 86400


class Place:
    """A project of two environments that share a package, and its home."""

    def __init__(self, folder: Path, run_local: RunLocal) -> None:
        self.root, self.home, self._run_local = folder, folder / "home", run_local
        self.home.mkdir()
        for name in NAMES:
            wheels = [make_wheel(folder / "wheels", each, "1").as_uri() for each in ("common", name.replace("-", "_"))]
            make_spec(folder, name, *(f"{Path(url).name.split('-')[0]} @ {url}" for url in wheels))

    def __call__(self, *arguments: str) -> dict[str, list[dict[str, object]]]:
        done = self.plain("gc", *arguments, "--json")
        found: dict[str, list[dict[str, object]]] = json.loads(done)
        return found

    def plain(self, *arguments: str) -> str:
        done = self._run_local(*arguments, cwd=self.root, env={"RUN_LOCAL_HOME": str(self.home)})
        assert done.code == 0, done.stderr
        return done.stdout

    def age(self, name: str) -> str:
        """Let an environment be unused for long; its key."""
        [key] = [key for key, use in usage.noted(self.home).items() if use.name == name]
        past = time.time() - LONG_AGO
        os.utime(self.home / "used" / key, (past, past))
        return key

    def names(self, kind: str) -> set[str]:
        """The names of what there is, by its files."""
        if kind == "archive":
            return {path.name.split("-")[0] for path in self.home.glob("packages/archives/*/*")}
        return {json.loads(path.read_text())["name"] for path in self.home.glob("layers/*.json")}


@pytest.fixture
def place(tmp_path: Path, home: Path, run_local: RunLocal, engine: docker.DockerClient) -> Iterator[Place]:
    """It is built for Docker; its images are removed afterwards."""
    made = Place(tmp_path, run_local)
    if (home / "bases").exists():
        shutil.copytree(home / "bases", made.home / "bases")
    made.plain("build", "--runtime", "docker")
    yield made
    for name in NAMES:
        for image in engine.api.images(filters={"label": f"{dockerd.LABEL}.environment={name}"}):
            engine.api.remove_image(image["Id"], force=True)


def images(engine: docker.DockerClient) -> set[str]:
    found = engine.api.images(filters={"label": f"{dockerd.LABEL}=environment"})
    return {each["Labels"][f"{dockerd.LABEL}.environment"] for each in found} & {*NAMES}


def test_what_is_old_goes_and_what_is_shared_stays(place: Place, engine: docker.DockerClient) -> None:
    """First only said, then done; the environment that stays needs nothing to be made again, and the other can be."""
    place.age("test-old")
    before = place.names("layer")
    planned = place("--dry-run")
    assert (place.names("layer"), images(engine)) == (before, {*NAMES})
    assert {each["name"] for each in planned["removed"] if each["kind"] == "layer"} == {"test-old"}
    assert place("--older-than", "60d")["removed"] == planned["removed"]
    assert images(engine) == {"test-new"}
    assert "test_old" not in place.names("archive")
    assert {"common", "test_new"} <= place.names("archive")
    assert place.names("layer") == before - {"test-old"}
    assert place("--dry-run")["removed"] == []
    place.plain("build", "--runtime", "docker")
    assert images(engine) == {*NAMES}
    assert place.names("layer") == before


def test_what_is_used_stays(place: Place, engine: docker.DockerClient) -> None:
    """By a run that holds it, or by a container that is none of ours; whoever makes something keeps what is shared."""
    key = place.age("test-old")
    with usage.hold(place.home, key), usage.hold(place.home, usage.MAKING):
        place.age("test-old")
        kept = place("--all")["kept"]
    assert {str(each["why"]) for each in kept} == {"a run uses it", "somebody makes an environment just now"}
    assert "test-old" in images(engine)
    place.plain("build", "--runtime", "docker")
    [image] = engine.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-old"})
    made = engine.api.create_container(image["Id"], ["sleep", "60"], labels={dockerd.LABEL: "test"})["Id"]
    try:
        kept = place("--all")["kept"]
        assert any("conflict" in str(each["why"]) for each in kept)
        assert engine.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-old"})
    finally:
        engine.api.remove_container(made, force=True)


def test_all_leaves_a_home_that_works(place: Place, engine: docker.DockerClient) -> None:
    """Prefixes go, too; everything is made again when it is needed."""
    place.plain("build", "--runtime", "process")
    place("--all")
    assert not images(engine)
    assert not [path for path in place.home.glob("prefixes/*") if path.is_dir()]
    assert not list(place.home.glob("packages/archives/*/*"))
    assert not list(place.home.glob("tmp/scratch-*"))
    place.plain("build", "--runtime", "process")
    assert len([path for path in place.home.glob("prefixes/*") if path.is_dir()]) == len(NAMES)


@pytest.mark.parametrize(("option", "value"), [("--older-than", "soon"), ("--max-size", "3X"), ("--max-size", "-1G")])
def test_an_age_or_a_size_that_is_none_is_refused(tmp_path: Path, run_local: RunLocal, option: str, value: str) -> None:
    """With an example of one."""
    done = run_local("gc", option, value, cwd=tmp_path)
    assert done.code == 2
    assert f"`{option}` does not understand `{value}`" in done.stderr
    assert "write it like" in done.stderr
