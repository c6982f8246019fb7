"""`run-local gc` for real: images, prefixes, archives and layers go, and what is used stays."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

    def __call__(self, *arguments: str, **variables: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.plain("gc", *arguments, "--json", **variables))
        return found

    def plain(self, *arguments: str, **variables: str) -> str:
        done = self._run_local(*arguments, cwd=self.root, env={"RUN_LOCAL_HOME": str(self.home), **variables})
        assert done.code == 0, done.stderr
        return done.stdout

    def age(self, name: str) -> str:
        """Let an environment be unused for long; its key."""
        [key] = [key for key, use in usage.noted(self.home).items() if use and name in use.names]
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
    assert {str(each["why"]) for each in kept} == {
        "a run uses it",
        "somebody makes an environment or cleans up just now",
    }
    assert "test-old" in images(engine)
    place.plain("build", "--runtime", "docker")
    [image] = engine.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-old"})
    made = engine.api.create_container(image["Id"], ["sleep", "60"], labels={dockerd.LABEL: "test"})["Id"]
    try:
        told = place("--all", "--dry-run")
        done = place("--all")
        assert done == {**told, "dry_run": False}
        assert ("test-old", "a container uses it") in {(each["name"].split()[0], each["why"]) for each in done["kept"]}
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
    assert usage.noted(place.home) == {}
    place.plain("build", "--runtime", "process")
    assert len([path for path in place.home.glob("prefixes/*") if path.is_dir()]) == len(NAMES)


def test_environments_that_are_the_same_go_together(place: Place, engine: docker.DockerClient) -> None:
    """One key, two names, two images: each counts as one of it, and their bytes count once."""
    wheel = make_wheel(place.root / "wheels", "common", "1").as_uri()
    for name in NAMES:
        make_spec(place.root, name, f"common @ {wheel}")
    place.plain("build", "--runtime", "docker")
    listed = json.loads(place.plain("envs", "--json", "--runtime", "docker"))
    [key] = {each["key"] for each in listed}
    assert [each["shared_bytes"] for each in listed] == [each["bytes"] for each in listed]
    [use] = [use for use in usage.noted(place.home).values() if use and use.key == key]
    assert {*use.names} == {*NAMES}
    made = [engine.images.get(f"run-local/{name}:{key[:12]}") for name in NAMES]
    size = made[0].attrs["Size"]
    past = time.time() - LONG_AGO
    os.utime(place.home / "used" / key, (past, past))
    done = place()
    [removed] = [each for each in done["removed"] if each["kind"] == "environment"]
    assert removed["name"] == f"test-new, test-old {key[:12]}"
    assert removed["bytes"] < size
    assert done["bytes"] < size
    assert not {each["Id"] for each in engine.api.images()} & {each.id for each in made}


def test_an_image_that_somebody_else_made_or_named_stays(place: Place, engine: docker.DockerClient) -> None:
    """One built upon ours inherits its labels, and is not ours; one of ours with another name is wanted."""
    [own] = engine.api.images(filters={"label": f"{dockerd.LABEL}.environment=test-old"})
    made = engine.api.create_container(own["Id"], ["true"], labels={dockerd.LABEL: "test"})["Id"]
    derived = engine.api.commit(made, repository="run-local-tests/derived", tag="1")["Id"]
    engine.api.remove_container(made)
    engine.api.tag(own["Id"], "run-local-tests/named", "1")
    try:
        kept = place("--all")["kept"]
        assert ("test-old", "it is called `run-local-tests/named:1`, too") in {
            (each["name"].split()[0], each["why"]) for each in kept
        }
        assert {derived, own["Id"]} <= {each["Id"] for each in engine.api.images()}
        assert images(engine) == {"test-old"}
        engine.api.remove_image("run-local-tests/named:1")
        place("--all")
        assert derived in {each["Id"] for each in engine.api.images()}
        assert own["RepoTags"][0] not in {tag for each in engine.api.images() for tag in each["RepoTags"] or ()}
    finally:
        engine.api.remove_image(derived, force=True)


def test_an_image_that_another_home_uses_stays(place: Place, tmp_path: Path, engine: docker.DockerClient) -> None:
    """While a run there uses it; otherwise each home may remove what it used itself, and nothing else."""
    other = tmp_path / "other"
    other.mkdir()
    key = place.age("test-old")
    assert place("--all", RUN_LOCAL_HOME=str(other))["removed"] == []
    with usage.hold(other, key):
        kept = place("--all")["kept"]
    assert ("test-old", "a run with another RUN_LOCAL_HOME uses it") in {
        (each["name"].split()[0], each["why"]) for each in kept
    }
    assert images(engine) == {"test-old"}
    assert "test-old" in place.names("layer")


def test_without_an_engine_its_images_keep_what_they_consist_of(place: Place) -> None:
    """It may be down for an hour only."""
    before = place.names("archive"), place.names("layer")
    done = place("--older-than", "0d", DOCKER_HOST="unix:///nonexistent")
    assert (place.names("archive"), place.names("layer")) == before
    assert {each["why"] for each in done["kept"]} == {"no Docker engine answers"}


def test_a_committed_lock_can_be_built_after_everything_went(place: Place) -> None:
    """The bridge's packages that it names stay, because nobody could make them again for it."""
    place.plain("lock", "test-old", "--runtime", "process")
    place.plain("build", "test-old", "--runtime", "process")
    done = place("--all")
    lock = place.root / "envs/test-old/conda-lock.yml"
    assert ("channel", f"`{lock}` names its packages") in {(each["kind"], each["why"]) for each in done["kept"]}
    place.plain("build", "test-old", "--runtime", "process")


@pytest.mark.parametrize(("option", "value"), [("--older-than", "soon"), ("--max-size", "3X"), ("--max-size", "-1G")])
def test_an_age_or_a_size_that_is_none_is_refused(tmp_path: Path, run_local: RunLocal, option: str, value: str) -> None:
    """With an example of one."""
    done = run_local("gc", option, value, cwd=tmp_path)
    assert done.code == 2
    assert f"`{option}` does not understand `{value}`" in done.stderr
    assert "write it like" in done.stderr
