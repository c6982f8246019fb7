"""Layers without an engine: which package lies where, and that a part is a layer that can be read."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from types import SimpleNamespace

import docker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.environments import layers, sending
from executor.environments.layers import Part

PREFIX = "/opt/env"


def part(name: str, size: int) -> Part:
    return Part(key=name, name=name, size=size, digest=name, file=Path(name))


def made(folder: Path, name: str, files: dict[str, str]) -> Part:
    """A part of these files, in a home that is the folder."""
    root = folder / f"installed-{name}"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    layers.make_part(name, name, root, list(files), PREFIX, folder)
    found = layers.find_part(name, folder)
    assert found is not None
    return found


def test_what_more_environments_hold_lies_deeper() -> None:
    """Python below all, then by how many hold it, then the larger first, then by name."""
    parts = {name: part(name, size) for name, size in {"b": 5, "a": 5, "python": 1, "big": 9, "shared": 2}.items()}
    groups = layers.arrange(parts, "python", {"shared": 3, "python": 1}, 60)
    assert groups == [["python"], ["shared"], ["big"], ["a"], ["b"]]


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_no_package_is_lost_however_few_layers_there_are(sizes: dict[str, int], room: int) -> None:
    """Each is in exactly one layer, and there are no more layers than there is room for."""
    parts = {name: part(name, size) for name, size in sizes.items()}
    groups = layers.arrange(parts, min(parts), {}, room)
    assert sorted(name for group in groups for name in group) == sorted(parts)
    assert len(groups) <= room
    assert all(groups)


def test_a_part_is_found_only_whole(tmp_path: Path) -> None:
    """One that was cut short, or has lost what is said of it, has to be made again."""
    found = made(tmp_path, "idna", {"lib/idna.py": "x" * 1000})
    data = found.file.read_bytes()
    found.file.write_bytes(data[:-1])
    assert layers.find_part("idna", tmp_path) is None
    found.file.write_bytes(data)
    assert layers.find_part("idna", tmp_path) == found
    found.file.with_name("idna.json").write_text("{")
    assert layers.find_part("idna", tmp_path) is None
    assert not list(tmp_path.glob("layers/half-*"))


def test_a_layer_of_one_part_is_known_without_reading_it(tmp_path: Path) -> None:
    """Its digest and size are those of what an engine gets; the same files give the same part wherever they are."""
    one = made(tmp_path, "a", {"lib/a.py": "a", "bin/run": "#!/bin/sh\n"})
    again = made(tmp_path / "other", "a", {"bin/run": "#!/bin/sh\n", "lib/a.py": "a"})
    assert one.file.read_bytes() == again.file.read_bytes()
    layer = layers.layer([one])
    assert layer.chunks is not None
    data = b"".join(layer.chunks())
    assert (layer.size, layer.digest) == (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")


@pytest.mark.parametrize("count", [2, 5])
def test_a_layer_of_several_parts_holds_the_files_of_all(tmp_path: Path, count: int) -> None:
    """It is one archive, which names nothing twice, and whose digest and size are what they are said to be."""
    parts = [
        made(tmp_path, f"p{number}", {f"lib/p{number}/{'long' * 40}.py": str(number), "lib/same.py": str(number)})
        for number in range(count)
    ]
    layer = layers.layer(parts)
    assert layer.chunks is not None
    data = b"".join(layer.chunks())
    assert (layer.size, layer.digest) == (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
    (tmp_path / "layer.tar").write_bytes(data)
    with tarfile.open(tmp_path / "layer.tar") as archive:
        names = [member.name for member in archive]
        same = archive.extractfile("opt/env/lib/same.py")
        assert same is not None
        assert same.read() == b"0"
    assert len(names) == len(set(names))
    assert {f"opt/env/lib/p{number}/{'long' * 40}.py" for number in range(count)} <= set(names)


def test_another_python_or_prefix_makes_another_part() -> None:
    """Bytecode is of one version of Python, and scripts name the prefix."""
    package = {"manager": "pip", "name": "idna", "sha256": "ab"}
    keys = {
        layers.part_key(each, python, prefix)
        for each in (package, {**package, "sha256": "cd"})
        for python in ("3.11.7", "3.12.1")
        for prefix in ("/opt/env", "/opt/other")
    }
    assert len(keys) == 8


def test_an_image_that_goes_while_it_is_looked_at_is_no_image() -> None:
    """Another process may remove one after it was listed."""
    layers_of = {"a": ["1", "2", "x"], "c": ["1", "y"]}

    def inspect_image(image: str) -> dict[str, object]:
        if image not in layers_of:
            raise docker.errors.ImageNotFound("No such image")
        return {"RootFS": {"Layers": layers_of[image]}}

    api = SimpleNamespace(images=lambda filters: [{"Id": each} for each in "abc"], inspect_image=inspect_image)
    assert sending._known(SimpleNamespace(api=api), ["1", "2", "3"]) == 2
