"""What people write into an environment.yml by mistake: each ends in a SpecError with its line, never in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from executor.authoring import CondaSpec
from executor.environments.spec import find_spec, read_inline, read_spec, unite
from executor.errors import SpecError
from executor.manifest import EnvironmentEntry, Manifest, Shape

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


def write(folder: Path, text: str | bytes, name: str = "environment.yml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def mistakes_of(folder: Path, text: str | bytes) -> str:
    with pytest.raises(SpecError) as caught:
        read_spec(write(folder, text), "x")
    return caught.value.why


def manifest(root: Path, name: str, image: str | None = None, extends: tuple[str, ...] = ()) -> Manifest:
    entry = EnvironmentEntry(
        name=name, image=image, depends_on=(), extends=extends, shape=SHAPE, env_vars={}, file="flow.py", line=3
    )
    return Manifest(root=str(root), import_roots=(".",), environments={name: entry}, tasks={})


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("- python\n", "environment.yml:1: environment.yml must be a mapping of keys"),
        ("python", "environment.yml:1: environment.yml must be a mapping of keys"),
        ("name: x\n", "`dependencies:` must be a list"),
        ("dependencies: python\n", "environment.yml:1: `dependencies:` must be a list"),
        ("dependencies:\n  - python\n  - pip: numpy\n", "environment.yml:3: `pip:` must be a list of texts"),
        ("dependencies:\n  - python\n  - pip: [[a]]\n", "environment.yml:3: `pip:` must be a list of texts"),
        ("dependencies:\n  - python\n  - npm: [a]\n", "environment.yml:3: a dependency is a text"),
        ("dependencies:\n  - python\n  -\n", "environment.yml:3: a dependency is a text"),
        ("channels: conda-forge\ndependencies: [python]\n", "environment.yml:1: `channels:` must be a list of texts"),
        ("dependencies: [python]\nrun-local: true\n", "environment.yml:2: `run-local:` must be a mapping of keys"),
        ("dependencies: [python]\nvariables: [A]\n", "environment.yml:2: variables are a mapping"),
        ("dependencies: [python]\nvariables:\n  A: [1]\n", "environment.yml:3: variable `A` must be a text"),
        ("dependencies: [python]\nvariables:\n  A=B: 1\n", "environment.yml:3: `A=B` cannot name a variable"),
        ("dependencies: [python]\nrun-local:\n  base: [a]\n", "environment.yml:3: `base:` must be a text"),
        ("dependencies: [python]\nrun-local:\n  cuda: 2020-99-99\n", "environment.yml:3: `cuda:` must be true or"),
        ("dependencies: [python]\nrun-local:\n  cuda: !!python/name:os.system\n", "environment.yml:3: `cuda:` must be"),
        ("dependencies: [python]\ndependencies: [numpy]\n", "environment.yml:2: `dependencies` is there a second time"),
        ("dependencies: [python]\n? [a, b]\n: 1\n", "environment.yml:2: a key must be a text"),
        ("dependencies: [python]\nplatforms: linux-64\n", "environment.yml:2: `platforms:` must be a list of texts"),
        ("dependencies: [python]\nplatforms: [osx-64]\n", "environment.yml:2: `platforms:` is without `linux-64`"),
        ("dependencies: [python]\nplatforms: []\n", "environment.yml:2: `platforms:` is without `linux-64`"),
        (
            "dependencies: [python]\nplatform: [linux-64]\n",
            "2: unknown key `platform` in environment.yml; did you mean",
        ),
        ("dependencies: [python]\nfoo: 1\n", "environment.yml:2: unknown key `foo` in environment.yml; known are"),
    ],
)
def test_what_is_no_spec_is_refused_with_its_line(tmp_path: Path, text: str, mistake: str) -> None:
    """Whatever YAML can hold where something else belongs."""
    assert mistake in mistakes_of(tmp_path, text)


@pytest.mark.parametrize("text", [b"dependencies: [python]\n# \xff\n", b"a: \x00\n", b"a: \x1b[31m\n"])
def test_what_is_no_text_is_refused_by_file(tmp_path: Path, text: bytes) -> None:
    """Bytes that are not UTF-8, and characters that YAML forbids."""
    assert mistakes_of(tmp_path, text).startswith("environment.yml: ")


def test_what_is_no_yaml_is_refused_from_the_root(tmp_path: Path) -> None:
    """As every other mistake is."""
    for text, where in (("dependencies: [", "specs/x.yml:1:16: "), (b"# \xff\n", "specs/x.yml: ")):
        with pytest.raises(SpecError) as caught:
            read_spec(write(tmp_path / "specs", text, "x.yml"), "x", tmp_path)
        assert caught.value.why.startswith(where)


def test_what_conda_exports_is_read(tmp_path: Path) -> None:
    """A name and a prefix mean nothing; platforms do, if this one is not among them."""
    text = "name: other\nprefix: /opt/other\nplatforms: [osx-arm64, linux-64]\ndependencies: [python]\n"
    plain = read_spec(write(tmp_path, "dependencies: [python]\n"), "x")
    found = read_spec(write(tmp_path, text), "x")
    assert (found.name, found.digest) == ("x", plain.digest)


def test_the_file_of_another_operating_system_is_read(tmp_path: Path) -> None:
    """A byte order mark and CRLF change nothing."""
    plain = read_spec(write(tmp_path / "a", "dependencies:\n  - python\n"), "x")
    other = read_spec(write(tmp_path / "b", b"\xef\xbb\xbfdependencies:\r\n  - python\r\n"), "x")
    assert plain.digest == other.digest


@pytest.mark.parametrize(
    "python", ["python", "python 3.11.*", "python=3.11", "python>=3.10,<3.13", "conda-forge::python", "Python !=3.12"]
)
def test_python_is_recognised_however_it_is_asked_for(tmp_path: Path, python: str) -> None:
    """And `python-dateutil` is not Python."""
    assert read_spec(write(tmp_path, f"dependencies: ['{python}']\n"), "x").conda == (python,)
    assert "no `python`" in mistakes_of(tmp_path, "dependencies: [python-dateutil]\n")


def test_the_order_of_keys_and_the_name_change_no_digest(tmp_path: Path) -> None:
    """Nor do variables and the base, which are the image's business and not the lock's; channels and cuda do."""
    text = "name: a\nchannels: [c]\ndependencies: [python]\n"
    first = read_spec(write(tmp_path, text), "a")
    for same in (
        "dependencies: [python]\nchannels: [c]\n",
        text + "variables: {A: 1}\nrun-local: {base: 'debian:12'}\n",
    ):
        assert read_spec(write(tmp_path, same), "b").digest == first.digest
    for other in (text.replace("[c]", "[d]"), text + "run-local: {cuda: false}\n"):
        assert read_spec(write(tmp_path, other), "a").digest != first.digest


def test_a_rendered_spec_is_the_same_spec(tmp_path: Path) -> None:
    """What the solver reads says what the user wrote, whatever characters it needs to be quoted."""
    text = "dependencies:\n  - python\n  - pip\n  - pip:\n    - 'a @ file:///x y/#1.whl'\n    - \"b ; extra == 'ü'\"\n"
    spec = read_spec(write(tmp_path, text), "x")
    again = read_spec(write(tmp_path, spec.render()), "x")
    assert (again.digest, again.pip) == (spec.digest, ("a @ file:///x y/#1.whl", "b ; extra == 'ü'"))


def test_an_extending_environment_wins_over_what_it_extends(tmp_path: Path) -> None:
    """Its channels come first, and its base, cuda and variables count; requirements are everybody's, each once."""
    low = read_spec(
        write(
            tmp_path / "low",
            "channels: [a, b]\ndependencies: [python, numpy]\nvariables: {X: low, Y: low}\n"
            "run-local: {base: 'debian:11', cuda: true}\n",
        ),
        "low",
    )
    high = read_spec(
        write(
            tmp_path / "high",
            "channels: [c, a]\ndependencies: [python, scipy]\nvariables: {X: high}\nrun-local: {cuda: false}\n",
        ),
        "high",
    )
    both = unite("high", [low, high])
    assert (both.channels, both.conda) == (("c", "a", "b"), ("python", "numpy", "scipy"))
    assert (both.base, both.cuda, dict(both.variables)) == ("debian:11", False, {"X": "high", "Y": "low"})


def test_a_spec_that_is_named_is_looked_for_in_that_place_only(tmp_path: Path) -> None:
    """`image="specs/yours.yml"` is not replaced by `envs/<name>`, and the message says which file is missing."""
    write(tmp_path / "envs/x", "dependencies: [python]\n")
    with pytest.raises(SpecError, match="environment `x` has no specification") as caught:
        find_spec(manifest(tmp_path, "x", "specs/yours.yml"), "x")
    assert "there is no specs/yours.yml" in caught.value.why
    assert "envs/x/environment.yml" not in caught.value.why


@pytest.mark.parametrize("place", ["envs/x/environment.yml", "envs/x/environment.yaml", "envs/x.yml"])
def test_a_spec_is_found_in_every_usual_place(tmp_path: Path, place: str) -> None:
    """By the name of its environment alone, in a folder with any name."""
    root = tmp_path / "projekt ü #1"
    path = root / place
    write(path.parent, yaml.safe_dump({"dependencies": ["python"]}), path.name)
    assert find_spec(manifest(root, "x"), "x").path == path


def test_places_are_told_from_the_root_of_the_project(tmp_path: Path) -> None:
    """Wherever the file lies; without a project, from the `envs` that it lies in."""
    text = "dependencies:\n  - python\n  - numpy\n"
    for place in ("envs/x/environment.yml", "envs/x.yml", "specs/yours.yml"):
        path = tmp_path / place
        write(path.parent, text, path.name)
        assert find_spec(manifest(tmp_path, "x", place), "x").lines["x"]["numpy"] == f"{place}:3"
        short = place if place.startswith("envs") else "yours.yml"
        assert read_spec(path, "x").lines["x"]["numpy"] == f"{short}:3"


def test_an_extending_environment_keeps_the_places_and_the_packages_of_all(tmp_path: Path) -> None:
    """Debian packages of both, each once, and the line of each requirement in either, also of one that both have."""
    specs = [
        read_spec(
            write(tmp_path / f"envs/{name}", f"dependencies:\n - python\n - {name}\nrun-local: {{apt: [{apt}]}}\n"),
            name,
        )
        for name, apt in (("low", "curl, hello"), ("high", "hello, less"))
    ]
    both = unite("high", specs)
    assert both.apt == ("curl", "hello", "less")
    assert both.lines == {
        name: {"python": f"envs/{name}/environment.yml:2", name: f"envs/{name}/environment.yml:3"}
        for name in ("low", "high")
    }


def test_all_mistakes_of_requirements_are_told_at_once(tmp_path: Path) -> None:
    """Each with its own line."""
    text = (
        "dependencies:\n  - python\n  - numpy = = 2\n  - scipy >=\n  - pip:\n    - -e .\n    - --index-url x\n"
        "    - idna ==\nrun-local:\n  apt:\n    - hello\n    - Not ok\n  platform: osx-arm64\n"
    )
    told = sorted(line.partition("` ")[0] for line in mistakes_of(tmp_path, text).splitlines())
    assert told == [
        "environment.yml:12: `Not ok",
        "environment.yml:13: `osx-arm64",
        "environment.yml:3: `numpy = = 2",
        "environment.yml:4: `scipy >=",
        "environment.yml:6: `-e .",
        "environment.yml:7: `--index-url x",
        "environment.yml:8: `idna ==",
    ]


def declared(**given: object) -> dict[str, object]:
    return CondaSpec(**given).to_json()  # type: ignore[arg-type]


def test_a_specification_in_python_means_what_the_file_means(tmp_path: Path) -> None:
    """The same lock belongs to both."""
    path = tmp_path / "environment.yml"
    path.write_text(
        "channels: [bioconda, conda-forge]\nvariables: {A: b}\ndependencies: [python >=3.10, numpy, {pip: [idna==3.7]}]\n"
        "run-local: {base: 'debian:12', apt: [hello], cuda: false, platform: linux-64}\n"
    )
    inline = read_inline(
        declared(
            dependencies=["python >=3.10", "numpy"],
            pip=["idna==3.7"],
            channels=["bioconda", "conda-forge"],
            variables={"A": "b"},
            base="debian:12",
            apt=["hello"],
            cuda=False,
            platform="linux/amd64",
        ),
        "x",
        "flow.py:3",
    )
    file = read_spec(path, "x")
    assert (inline.digest, inline.apt, inline.base, inline.variables) == (
        file.digest,
        ("hello",),
        "debian:12",
        {"A": "b"},
    )
    assert (inline.cuda, inline.path) == (False, None)
    assert inline.lines["x"]["idna==3.7"] == "flow.py:3"
    assert file.lines["x"]["idna==3.7"] == "environment.yml:3"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"dependencies": ["python", "numpy = = 2"]}, "`numpy = = 2` compares twice"),
        ({"dependencies": ["python", "numpy >="]}, "`numpy >=` ends with a comparison to nothing"),
        ({"dependencies": ["python", "-c conda-forge"]}, "`-c conda-forge` is an option"),
        ({"dependencies": ["python", "(numpy)"]}, "`(numpy)` names no package"),
        ({"pip": ["-e ."]}, "`-e .` is an editable install"),
        ({"pip": ["-r requirements.txt"]}, "is a file of requirements"),
        ({"pip": ["--index-url https://x.example"]}, "is an option of pip"),
        ({"pip": ["idna =="]}, "`idna ==` names no package"),
        ({"apt": ["Not ok"]}, "`Not ok` cannot be the name of a Debian package"),
        ({"platform": "osx-64"}, "`osx-64` cannot be built and run here"),
    ],
)
def test_a_mistake_in_python_is_told_with_its_line(given: dict[str, object], text: str) -> None:
    """The line of the declaration."""
    with pytest.raises(SpecError) as caught:
        read_inline(declared(**given), "x", "flow.py:3")
    assert caught.value.why.startswith("flow.py:3: ")
    assert text in caught.value.why


@pytest.mark.parametrize(
    "text",
    [
        "numpy",
        "numpy=1.26",
        "numpy >=2,<3",
        "numpy >= 2 , < 3",
        "conda-forge::numpy=1.26=py311*",
        "https://conda.example.org/main::numpy",
        "numpy[version='>=2']",
        "libgcc-ng",
        "_libgcc_mutex",
    ],
)
def test_what_conda_understands_is_no_mistake(text: str) -> None:
    """Whatever form its users write."""
    assert read_inline(declared(dependencies=["python", text]), "x", "flow.py:3").conda == ("python", text)
