"""Specifications, locks and archives: understood or refused by line, and the same bytes whenever they are made."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.environments import archive
from executor.environments.lock import find_lock, lock, read_lock
from executor.environments.spec import Spec, find_spec, read_spec, unite
from executor.errors import LockError, SpecError
from executor.manifest import EnvironmentEntry, Manifest, Shape
from tests.environments.small import pack

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)

GOOD = """\
name: fold
channels: [conda-forge, bioconda]
dependencies:
  - python >=3.10   # any
  - pip:
      - torch==2.13.0
variables: {A: 1}
run-local:
  cuda: false
  base: debian:12
  env: {B: two}
"""

LOCK = """\
version: 1
metadata:
  custom_metadata: {{run-local-spec: {digest}, run-local-bridge: 'true'}}
package:
- {{name: python, version: 3.11.7, manager: conda, platform: linux-64, dependencies: {{}}, url: 'file:///p',
   hash: {{md5: a, sha256: b}}}}
- {{name: python, version: 3.11.7, manager: conda, platform: osx-64, dependencies: {{}}, url: 'file:///q',
   hash: {{md5: a, sha256: c}}}}
"""


def write(folder: Path, text: str, name: str = "environment.yml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def manifest(root: Path, *entries: tuple[str, str | None, tuple[str, ...]]) -> Manifest:
    return Manifest(
        root=str(root),
        import_roots=(".",),
        environments={
            name: EnvironmentEntry(
                name=name, image=image, depends_on=(), extends=extends, shape=SHAPE, env_vars={}, file="flow.py", line=3
            )
            for name, image, extends in entries
        },
        tasks={},
    )


def test_a_spec_is_read_as_conda_reads_it(tmp_path: Path) -> None:
    """Channels, dependencies, the pip list, variables, and our own key; `pip` is added where it is needed."""
    spec = read_spec(write(tmp_path, GOOD), "fold")
    assert spec.channels == ("conda-forge", "bioconda")
    assert (spec.conda, spec.pip) == (("python >=3.10", "pip"), ("torch==2.13.0",))
    assert (spec.cuda, spec.base, dict(spec.variables)) == (False, "debian:12", {"A": "1", "B": "two"})


def test_all_mistakes_of_a_spec_are_reported_with_their_lines(tmp_path: Path) -> None:
    """One look at the message is enough to mend the file."""
    text = "name: x\nchannls: [a]\ndependencies:\n  - numpy\n  - [1, 2]\nrun-local:\n  cuda: maybe\n  gpu: 1\n"
    with pytest.raises(SpecError) as caught:
        read_spec(write(tmp_path, text), "x")
    assert caught.value.why.splitlines() == [
        "environment.yml:2: unknown key `channls` in environment.yml; did you mean `channels`?",
        "environment.yml:8: unknown key `gpu` in `run-local:`; known are apt, base, cuda, env, platform",
        "environment.yml:5: a dependency is a text like `numpy >=2`, or one `pip:` list",
        "environment.yml:4: no `python` among the dependencies; tasks are Python",
        "environment.yml:7: `cuda:` must be true or false",
    ]


@pytest.mark.parametrize(
    ("text", "where"), [("a: [1,\nb: 2", ":2:"), ("\tx: 1", ":1:"), ("a: b: c", ":1:5"), ("x: &a\ny: *b", ":2:4")]
)
def test_broken_yaml_is_refused_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    """File, line and column."""
    with pytest.raises(SpecError) as caught:
        read_spec(write(tmp_path, text), "x")
    assert f"environment.yml{where}" in caught.value.why


def test_an_empty_spec_is_refused(tmp_path: Path) -> None:
    """And says so."""
    with pytest.raises(SpecError, match="specification of environment `x` is wrong") as caught:
        read_spec(write(tmp_path, ""), "x")
    assert "the file is empty" in caught.value.why


def test_a_comment_changes_no_digest_and_a_version_does(tmp_path: Path) -> None:
    """What a lock depends on, and nothing else, is in the digest."""
    first = read_spec(write(tmp_path / "a", GOOD), "fold")
    same = read_spec(write(tmp_path / "b", GOOD.replace("# any", "# none").replace("name: fold\n", "")), "fold")
    other = read_spec(write(tmp_path / "c", GOOD.replace("2.13.0", "2.12.0")), "fold")
    assert first.digest == same.digest != other.digest


def test_extends_is_one_spec_of_all(tmp_path: Path) -> None:
    """The union knows which environment asked for what."""
    write(tmp_path / "envs/a", "dependencies: [python, numpy]\n")
    write(tmp_path / "envs", "dependencies: [python, scipy]\n", "b.yml")
    spec = find_spec(manifest(tmp_path, ("a", None, ()), ("b", None, ()), ("c", None, ("a", "b"))), "c")
    assert spec.conda == ("python", "numpy", "scipy")
    assert dict(spec.sources) == {"a": ("python", "numpy"), "b": ("python", "scipy")}


def test_an_environment_without_spec_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """Where it is declared, where a spec was looked for, and what is there."""
    write(tmp_path / "envs/alphafold", "dependencies: [python]\n")
    with pytest.raises(SpecError, match="environment `alphafld` has no specification") as caught:
        find_spec(manifest(tmp_path, ("alphafld", None, ())), "alphafld")
    assert "flow.py:3" in caught.value.why
    assert "envs/alphafld/environment.yml" in caught.value.why
    assert "did you mean `alphafold`?" in caught.value.hint


def test_image_names_another_file(tmp_path: Path) -> None:
    """And one that is not there is refused."""
    write(tmp_path / "specs", "dependencies: [python]\n", "mine.yml")
    assert find_spec(manifest(tmp_path, ("x", "specs/mine.yml", ())), "x").conda == ("python",)
    with pytest.raises(SpecError, match="has no specification"):
        find_spec(manifest(tmp_path, ("x", "specs/yours.yml", ())), "x")


def small(digest: Callable[[Spec], str], folder: Path) -> tuple[Spec, Path]:
    spec = read_spec(write(folder, "dependencies: [python]\n"), "x")
    (folder / "conda-lock.yml").write_text(LOCK.format(digest=digest(spec)))
    return spec, folder / "conda-lock.yml"


def test_a_committed_lock_is_used_and_an_outdated_one_refused(tmp_path: Path) -> None:
    """Beside the specification, and only if it was made from it."""
    spec, path = small(lambda spec: spec.digest, tmp_path / "a")
    found = lock(spec, home=tmp_path, glibc="2.36", say=lambda *_: None)
    assert (found.path, found.python, found.bridge, len(found.packages)) == (path, "3.11.7", True, 1)
    spec, path = small(lambda _: "other", tmp_path / "b")
    with pytest.raises(LockError, match="out of date") as caught:
        lock(spec, home=tmp_path, glibc="2.36", say=lambda *_: None)
    assert caught.value.hint.startswith("run `run-local lock x`")


@pytest.mark.parametrize("text", ["", "[]", "package: 3", "version: 1\nmetadata: {}\npackage: []\n", "\t"])
def test_a_lock_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Damaged files end in a LockError that names them."""
    path = write(tmp_path, text, "conda-lock.yml")
    with pytest.raises(LockError):
        read_lock(path)


def test_a_lock_of_our_own_changes_with_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification, the C library of the base, and pip's settings."""
    spec = read_spec(write(tmp_path, "dependencies: [python]\n"), "x")
    other = unite("x", [read_spec(write(tmp_path, "dependencies: [python, pip]\n"), "x")])
    paths = [find_lock(spec, home=tmp_path, glibc="2.36"), find_lock(spec, home=tmp_path, glibc="2.31")]
    paths.append(find_lock(other, home=tmp_path, glibc="2.36"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    paths.append(find_lock(spec, home=tmp_path, glibc="2.36"))
    assert len(set(paths)) == 4


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / "bin").mkdir()
    (folder / "bin" / "run").write_text("#!/bin/sh\n")
    (folder / "bin" / "run").chmod(0o700)
    (folder / "bin" / "link").symlink_to("run")
    return folder


def test_a_layer_depends_on_nothing_but_its_files(tmp_path: Path) -> None:
    """Times, order of creation, owners and the modes of others do not change its bytes; names of any length survive."""
    names = ["lib/a.py", "lib/ünïcode.txt", "lib/" + "long" * 40 + "/x.py"]
    first = fill(tmp_path / "one", names)
    second = fill(tmp_path / "two", names[::-1])
    for path in second.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (0, 0))
    (second / "lib/a.py").chmod(0o600)
    layers = [pack(folder, "/opt/env", tmp_path / f"{folder.name}.tar") for folder in (first, second)]
    assert layers[0].digest == layers[1].digest
    with tarfile.open(tmp_path / "one.tar") as packed:
        found = {member.name: member for member in packed}
    assert {f"opt/env/{name}" for name in names} <= set(found)
    assert (found["opt/env/bin/run"].mode, found["opt/env/lib/a.py"].mode) == (0o755, 0o644)
    assert found["opt/env/bin/link"].linkname == "run"
    assert {(member.mtime, member.uid, member.gid) for member in found.values()} == {(0, 0, 0)}


def test_an_archive_holds_only_the_layers_that_have_a_file(tmp_path: Path) -> None:
    """The others are named, for an engine that has them; and what was packed can be unpacked again."""
    own = pack(fill(tmp_path / "f", ["x"]), "/opt/env", tmp_path / "own.tar")
    base = archive.Layer(digest="sha256:" + "0" * 64)
    config = archive.image_config([base, own], variables={"B": "2", "A": "1"}, labels={"run-local": "test"})
    data = b"".join(archive.archive(config, "run-local/x:1", [base, own]))
    with tarfile.open(fileobj=io.BytesIO(data)) as bundle:
        assert len(bundle.getnames()) == 3
    (tmp_path / "saved.tar").write_bytes(b"".join(archive.archive(config, "run-local/x:1", [own])))
    [unpacked] = archive.unpack_layers(tmp_path / "saved.tar", tmp_path)
    assert unpacked.digest == own.digest
