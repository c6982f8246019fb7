"""Layers as an engine reads them: what comes out of the tar is what was in the folder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from executor.environments import archive
from tests.environments.small import pack

LONG = "/".join(["n" * 90] * 4) + "/" + "x" * 200 + ".py"


def test_a_layer_unpacks_to_what_was_packed(tmp_path: Path) -> None:
    """Names of more than 100 characters or without ASCII, links of every kind, and what may be executed."""
    folder = tmp_path / "env"
    for name in (LONG, "ünï cödé/日本.txt", "bin/run"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    (folder / "bin/run").chmod(0o755)
    links = {"to-file": LONG, "to-folder": "bin", "to-nothing": "../" + "gone/" * 40, "to-root": "/etc/passwd"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    pack(folder, "/opt/env", tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as packed:
        packed.extractall(tmp_path / "out")
    out = tmp_path / "out/opt/env"
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == sorted(
        path.relative_to(folder) for path in folder.rglob("*")
    )
    for name in (LONG, "ünï cödé/日本.txt", "bin/run"):
        assert (out / name).read_bytes() == name.encode() * 1000
    assert os.access(out / "bin/run", os.X_OK)
    assert not os.access(out / LONG, os.X_OK)
    assert {name: str((out / name).readlink()) for name in links} == {
        name: target.rstrip("/") for name, target in links.items()
    }


def test_files_that_share_their_content_on_disk_are_whole_in_the_layer(tmp_path: Path) -> None:
    """Hard links into a cache are packed as files, so that the layer does not depend on what else the cache holds."""
    layers = []
    for number, linked in enumerate((True, False)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a").write_text("same")
        (folder / "b").hardlink_to(folder / "a") if linked else (folder / "b").write_text("same")
        layers.append(pack(folder, "/opt/env", tmp_path / f"{number}.tar").digest)
    assert layers[0] == layers[1]


@pytest.mark.parametrize("change", ["content", "name", "executable", "link", "place"])
def test_whatever_a_task_could_notice_changes_the_digest(tmp_path: Path, change: str) -> None:
    """Nothing that differs is taken for the same."""
    digests = []
    for name in ("before", "after"):
        folder, changed = tmp_path / name, name == "after"
        folder.mkdir()
        file = folder / ("other" if changed and change == "name" else "file")
        file.write_text("b" if changed and change == "content" else "a")
        file.chmod(0o755 if changed and change == "executable" else 0o644)
        (folder / "link").symlink_to("x" if changed and change == "link" else "y")
        inside = "/opt/other" if changed and change == "place" else "/opt/env"
        digests.append(pack(folder, inside, tmp_path / f"{name}.tar").digest)
    assert digests[0] != digests[1]


def test_the_id_of_an_image_is_the_digest_of_its_configuration(tmp_path: Path) -> None:
    """The order in which variables and labels are given does not matter; the order of layers does."""
    layers = [archive.Layer(digest=f"sha256:{number:064}") for number in range(2)]
    first = archive.image_config(layers, variables={"A": "1", "B": "2"}, labels={"x": "1", "y": "2"})
    assert first == archive.image_config(layers, variables={"B": "2", "A": "1"}, labels={"y": "2", "x": "1"})
    assert first != archive.image_config(layers[::-1], variables={"A": "1", "B": "2"}, labels={"x": "1", "y": "2"})
