"""`File` and `Dir` as Flyte 2's scripts use them."""

from __future__ import annotations

import asyncio
import os
import pickle
from pathlib import Path

import pytest

from executor import Dir, File


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    """With and without `await`; a new one lies in a folder of its own."""
    made, other = File.new_remote("model.pdb"), File.new_remote("model.pdb")
    assert made.path != other.path
    assert not made.exists_sync()
    with made.open_sync("w") as file:
        file.write("ATOM")

    async def read() -> str:
        async with File(made.path).open("r") as file:
            text: str = await file.read()
            return text

    assert (asyncio.run(read()), made.name, made.path.read_text()) == ("ATOM", "model.pdb", "ATOM")
    assert (made.download_sync(), os.fspath(made)) == (str(made.path), str(made.path))
    for each in (made, other):
        each.path.unlink(missing_ok=True)
        each.path.parent.rmdir()


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    """Those in it, and those further down."""
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).touch()
    folder = Dir.from_local_sync(tmp_path)
    assert [file.name for file in folder.list_files_sync()] == ["a"]
    assert [file.name for file in folder.walk_sync()] == ["a", "b"]


@pytest.mark.parametrize("kind", [File, Dir])
def test_they_are_values(kind: type[File] | type[Dir]) -> None:
    """Equal by path and kind, hashable, picklable, shown as they are written."""
    one = kind("x/y")
    assert one == kind(Path("x/y")) == pickle.loads(pickle.dumps(one))
    assert len({one, kind("x/y"), kind("z")}) == 2
    assert File("x") != Dir("x")
    assert repr(one) == f"{kind.__name__}('x/y')"
