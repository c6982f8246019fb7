"""Layers in a real engine: what environments share is there once, and only what is new is made and sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from executor import dockerd
from executor.environments import Builder, layers
from executor.environments.spec import Spec, read_spec
from executor.errors import BuildError
from tests.environments.registry import serving
from tests.environments.small import make_wheel

NAMES = ("test-one", "test-two", "test-apt")


class Project:
    """Environments made of small wheels, in a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder, folder / "home"
        (self.home / "tmp").mkdir(parents=True)
        self.said: list[str] = []
        self.builder = Builder("docker", self.home, self._hear)

    def spec(self, name: str, *wheels: str, **own: object) -> Spec:
        """An environment with these wheels, each of version 1."""
        urls = [f"{each} @ {make_wheel(self.root / 'wheels', each, '1', script=each).as_uri()}" for each in wheels]
        path = self.root / "envs" / name / "environment.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"dependencies": ["python", {"pip": urls}], "run-local": own}))
        return read_spec(path, name)

    def steps(self) -> list[str]:
        """The steps since the last question."""
        said, self.said = self.said, []
        return said

    def _hear(self, environment: str, step: str, detail: str, done: float | None = None) -> None:
        del environment, step, done
        self.said.append(detail)


@pytest.fixture
def made(tmp_path: Path, home: Path, engine: docker.DockerClient) -> Iterator[Project]:
    """A project whose images are removed afterwards; the base is the session's."""
    made = Project(tmp_path)
    if (home / "bases").exists():
        shutil.copytree(home / "bases", made.home / "bases")
    yield made
    made.builder.close()
    for name in NAMES:
        for image in engine.api.images(filters={"label": f"{dockerd.LABEL}.environment={name}"}):
            engine.api.remove_image(image["Id"], force=True)


def layers_of(engine: docker.DockerClient, image: str | None) -> list[str]:
    found: list[str] = engine.api.inspect_image(str(image))["RootFS"]["Layers"]  # type: ignore[no-untyped-call]
    return found


def test_what_environments_share_is_there_once(made: Project, engine: docker.DockerClient) -> None:
    """The common packages are the same layers; what is only in one lies above them, and so does what is added later."""
    one, two = made.spec("test-one", "common_a", "only_one"), made.spec("test-two", "common_a", "only_two")
    built = made.builder.build_all([one, two], root=made.root)
    first, second = (layers_of(engine, built[name].image) for name in ("test-one", "test-two"))
    assert first[:-1] == second[:-1]
    assert first[-1] != second[-1]
    made.steps()
    changed = made.spec("test-two", "common_a", "only_two", "added")
    again = made.builder.build_all([changed], root=made.root)["test-two"]
    assert layers_of(engine, again.image)[: len(first) - 1] == first[:-1]
    steps = made.steps()
    assert "packing 1 package" in steps
    assert "sending 0 MiB" in steps
    said = dockerd.output_of(engine, str(again.image), ["sh", "-c", "added; only_two; common_a; only_one"])
    assert said.split("\n")[:3] == ["added 1", "only_two 1", "common_a 1"]
    assert "not found" in said


def test_an_image_that_is_lost_is_put_together_again(made: Project, engine: docker.DockerClient) -> None:
    """From the layers that are kept: nothing is installed, and the id is the same; without them, too."""
    one = made.spec("test-one", "common_a", "only_one")
    first = made.builder.build_spec(one)
    for lost in ((), ("layers",), ("layers", "packages", "channel", "locks")):
        engine.api.remove_image(str(first.image), force=True)
        for folder in lost:
            shutil.rmtree(made.home / folder)
        made.steps()
        assert made.builder.build_spec(one) == first
        assert any("installing" in step for step in made.steps()) == bool(lost)


def test_there_are_never_more_layers_than_an_engine_takes(
    made: Project, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest packages share the last one, and all of them are there."""
    monkeypatch.setattr(layers, "MOST_LAYERS", 4)
    names = [f"part_{number}" for number in range(6)]
    built = made.builder.build_spec(made.spec("test-one", *names))
    assert len(layers_of(engine, built.image)) == 4
    assert dockerd.output_of(engine, str(built.image), ["sh", "-c", "; ".join(names)]).split("\n")[:6] == [
        f"{name} 1" for name in names
    ]


def test_apt_packages_lie_below_the_environment(made: Project, engine: docker.DockerClient) -> None:
    """They are in the image, whose own check may use them; a package that there is not is refused with apt's words."""
    spec = made.spec("test-apt", "only_one", apt=["hello"])
    check = "import subprocess\nassert b'Hello' in subprocess.run(['hello'], capture_output=True, check=True).stdout\n"
    assert spec.path is not None
    spec.path.with_name("verify.py").write_text(check)
    first = made.builder.build_spec(spec)
    for image in (first.image, *tagged(engine, "run-local/apt")):
        engine.api.remove_image(str(image), force=True)
    assert made.builder.build_spec(spec) == first
    wrong = made.spec("test-two", "only_one", apt=["there-is-no-such-package"])
    with pytest.raises(BuildError, match="apt cannot install there-is-no-such-package") as caught:
        made.builder.build_spec(wrong)
    assert "Unable to locate package" in caught.value.why
    for image in tagged(engine, "run-local/apt"):
        engine.api.remove_image(image, force=True)


def tagged(engine: docker.DockerClient, repository: str) -> list[str]:
    return [image["RepoTags"][0] for image in engine.api.images(name=repository)]


def test_a_base_is_pulled_by_its_digest(made: Project, engine: docker.DockerClient, tmp_path: Path) -> None:
    """From whoever serves it; it is said which one that is. A base that nobody serves is refused by name."""
    have = made.spec("test-one", "only_one")
    made.builder.build_spec(have)
    below = next(each for each in tagged(engine, "run-local/base") if ":none" not in each)
    (tmp_path / "registry").mkdir()
    with serving(engine, below, {dockerd.LABEL: "base"}, tmp_path / "registry") as (reference, digest):
        built = made.builder.build_spec(made.spec("test-two", "only_two", base=reference))
        try:
            assert f"`{reference}` is {reference.removesuffix(':1')}@{digest}" in made.steps()
            assert layers_of(engine, built.image)[:1] == layers_of(engine, below)
            assert "only_two 1" in dockerd.output_of(engine, str(built.image), ["only_two"])
        finally:
            engine.api.remove_image(reference, force=True)
    with pytest.raises(BuildError, match=r"the base image `127\.0\.0\.1:9/none:1` cannot be had") as caught:
        made.builder.build_spec(made.spec("test-two", "only_two", base="127.0.0.1:9/none:1"))
    assert "127.0.0.1:9" in caught.value.why
