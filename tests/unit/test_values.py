"""Values go through the payload format and the store, and come back as they were."""

from __future__ import annotations

import array
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.data.leases import settle
from executor.data.store import FileRef, Store, ValueRefused
from executor.errors import MissingModule, UsageError
from executor.worker import payload
from executor.worker.preview import preview

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9000),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


class Slot:
    """The two folders of a slot, and a store, as host and task see them."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.task = folder / "inputs", folder / "task"
        self.outputs = self.task / "outputs"
        for made in (self.inputs, self.outputs, self.task / "work"):
            made.mkdir(parents=True)
        self.folders = payload.Folders(str(self.inputs), str(self.outputs), [str(self.task / "work")])
        self.store = Store(folder / "home", folder / "home" / "incoming")

    def send(self, value: Any, *, keep: bool = False) -> Any:
        """Task → host → task."""
        place, body, _ = payload.dump(value, self.folders, keep=keep)
        ref = self.store.take(place, body, self.outputs, {})
        back, body = self.store.place(ref, self.inputs)
        return payload.load(back, body, self.folders)


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(VALUES)
def test_values_come_back_equal(slot: Slot, value: Any) -> None:
    """Nested plain data survives the way through the store."""
    assert slot.send(value) == value


def test_a_large_buffer_is_mapped_writable_and_private(slot: Slot) -> None:
    """A buffer beside the pickle arrives writable, and what its receiver writes is seen by nobody else."""
    value = array.array("d", range(100_000))
    place, body, _ = payload.dump(bytearray(value.tobytes()), slot.folders, keep=False)
    assert place["name"] is not None
    ref = slot.store.take(place, body, slot.outputs, {})
    first, second = (payload.load(slot.store.place(ref, slot.inputs)[0], b"", slot.folders) for _ in range(2))
    first[:8] = b"changed!"
    assert bytes(second[:8]) == bytes(8)
    assert slot.store.path(ref.sha256).stat().st_size == ref.size


def test_a_file_of_the_task_travels_by_content(slot: Slot) -> None:
    """A path into the task's own folder arrives as the path of a file with the same name and content."""
    made = slot.task / "work" / "model.pdb"
    made.write_text("ATOM")
    got = slot.send({"model": made, "again": [made]})
    assert got["model"] == got["again"][0] != made
    assert (got["model"].name, got["model"].read_text()) == ("model.pdb", "ATOM")


def test_a_file_passed_on_to_a_call_keeps_its_content_when_the_task_goes_on(slot: Slot) -> None:
    """What a task writes to its file after a call does not change what the call was given."""
    made = slot.task / "work" / "notes.txt"
    made.write_text("before")
    place, body, _ = payload.dump(made, slot.folders, keep=True)
    made.write_text("after!")
    ref = slot.store.take(place, body, slot.outputs, {})
    back, body = slot.store.place(ref, slot.inputs)
    assert payload.load(back, body, slot.folders).read_text() == "before"


def test_a_given_file_is_passed_on_by_name_and_not_copied(slot: Slot) -> None:
    """A file that the host gave is handed on as what it is; one that it did not give is refused."""
    given_file = slot.inputs / "abc-0" / "in.fasta"
    given_file.parent.mkdir()
    given_file.write_text(">H")
    place, body, _ = payload.dump(given_file, slot.folders, keep=True)
    assert place["files"] == [{"name": "in.fasta", "given": "abc-0/in.fasta"}]
    original = FileRef(sha256="1" * 64, size=2, name="in.fasta")
    [passed] = slot.store.take(place, body, slot.outputs, {"abc-0/in.fasta": original}).files
    assert passed.sha256 == original.sha256
    with pytest.raises(ValueRefused, match="not given"):
        slot.store.take(place, body, slot.outputs, {})


def test_a_path_elsewhere_stays_a_path(slot: Slot) -> None:
    """A path outside the task's own folders, such as a mounted database, travels by name."""
    assert slot.send(Path("/databases/uniref90.fasta")) == Path("/databases/uniref90.fasta")


def test_a_folder_is_refused_by_name(slot: Slot) -> None:
    """Folders do not travel yet, and are not silently turned into something else."""
    with pytest.raises(UsageError, match=r"folder .*work"):
        slot.send(_made(slot.task / "work" / "sub"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("trap", ["symlink", "fifo", "folder", "name"])
def test_the_host_takes_nothing_but_regular_files(slot: Slot, tmp_path: Path, trap: str) -> None:
    """A link, a pipe, a folder or a path in the folder of outputs is refused, and the file behind it stays unread."""
    secret = tmp_path / "secret"
    secret.write_text("root only")
    output = slot.outputs / "v1"
    if trap == "symlink":
        output.symlink_to(secret)
    elif trap == "fifo":
        os.mkfifo(output)
    elif trap == "folder":
        output.mkdir()
    name = "../../secret" if trap == "name" else "v1"
    with pytest.raises(ValueRefused):
        slot.store.take({"size": 1, "name": name, "files": []}, b"", slot.outputs, {})
    assert secret.read_text() == "root only"
    assert not list((tmp_path / "home" / "incoming").iterdir())


@pytest.mark.parametrize("place", [{}, {"name": 3, "files": []}, {"name": None}, {"name": None, "files": [{}]}])
def test_a_place_that_makes_no_sense_is_refused(slot: Slot, place: dict[str, Any]) -> None:
    """Whatever a task says of its value, the answer is a refusal and not a crash."""
    with pytest.raises(ValueRefused):
        slot.store.take(place, b"", slot.outputs, {})


def test_a_value_of_a_missing_package_says_which(slot: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be opened here names its type and the module that is not there."""
    package = tmp_path / "src" / "elsewhere.py"
    package.parent.mkdir()
    package.write_text("class Model: pass")
    monkeypatch.syspath_prepend(str(package.parent))
    import elsewhere  # type: ignore[import-not-found]  # noqa: PLC0415  made two lines above

    place, body, _ = payload.dump(elsewhere.Model(), slot.folders, keep=False)
    monkeypatch.delitem(__import__("sys").modules, "elsewhere")
    package.unlink()
    with pytest.raises(MissingModule, match=r"elsewhere\.Model") as caught:
        payload.load(place, body, slot.folders)
    assert "`elsewhere`" in caught.value.why


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../../etc/passwd", "a/../..", "x" * 300, "\0"])
def test_a_name_of_a_file_leads_nowhere(slot: Slot, tmp_path: Path, name: str) -> None:
    """Whatever a task calls its file, it lands under a plain name in the folders of whoever gets it."""
    (slot.outputs / "v1").write_text("content")
    place = {"size": 1, "name": None, "files": [{"name": name, "at": "v1"}]}
    ref = slot.store.take(place, b"", slot.outputs, {})
    back, _ = slot.store.place(ref, slot.inputs)
    assert (slot.inputs / back["files"][0]["at"]).read_text() == "content"
    target = slot.store.export(ref.files[0], tmp_path / "outputs")
    assert (target.parent, target.read_text()) == (tmp_path / "outputs", "content")


def test_two_files_of_one_name_are_both_exported(tmp_path: Path) -> None:
    """Nothing in the user's folder is overwritten."""
    store = Store(tmp_path / "home", tmp_path / "home" / "incoming")
    refs = []
    for text in ("one", "two"):
        (tmp_path / "same.txt").write_text(text)
        refs.append(store.put_file(tmp_path / "same.txt", ""))
    targets = [store.export(ref, tmp_path / "outputs") for ref in refs]
    assert [target.name for target in targets] == ["same.txt", "same-2.txt"]
    assert [target.read_text() for target in targets] == ["one", "two"]


def test_a_preview_is_json_where_the_value_has_a_json_form(tmp_path: Path) -> None:
    """Plain data is shown as it is, files by their index, what is not finite as text, anything else by its repr."""
    file = tmp_path / "a.txt"
    file.write_text("x")
    assert preview({"n": (1, 2.5), "f": file, "x": float("nan")}, {str(file.resolve()): 0}) == {
        "json": {"n": [1, 2.5], "f": {"$file": 0}, "x": "nan"}
    }
    assert preview({1, 2}, {}) == {"text": "{1, 2}"}
    circle: list[Any] = []
    circle.append(circle)
    assert preview(circle, {})["text"].startswith("[[")


@dataclasses.dataclass
class Tree:
    left: Any
    right: Any


@pytest.mark.parametrize("pair", [lambda a: [a, a], lambda a: {"l": a, "r": a}, lambda a: Tree(a, a)])
def test_a_preview_of_what_is_shared_is_short(pair: Callable[[Any], Any]) -> None:
    """A value that would be gigabytes, written out, is shown in a few words and in no time."""
    value: Any = "leaf"
    for _ in range(40):
        value = pair(value)
    assert len(preview(value, {})["text"]) < 400


def test_a_preview_as_long_as_may_be(tmp_path: Path) -> None:
    """What fits is shown as a whole."""
    assert preview(["x" * 1000] * 250, {}) == {"json": ["x" * 1000] * 250}
    assert "text" in preview(["x" * 1000] * 300, {})


def test_nobody_writes_to_what_is_in_the_store(slot: Slot) -> None:
    """What a task is given is read-only, and where that does not keep it from writing, it is a copy."""
    (slot.task / "work" / "given.txt").write_text("original")
    place, body, _ = payload.dump([slot.task / "work" / "given.txt", bytes(100_000)], slot.folders, keep=False)
    ref = slot.store.take(place, body, slot.outputs, {})
    for path in (slot.store.path(ref.sha256), slot.store.path(ref.files[0].sha256)):
        assert path.stat().st_mode & 0o222 == 0
    for _ in range(2):
        placed, _ = slot.store.place(ref, slot.inputs, share=False)
        for at in (placed["name"], placed["files"][0]["at"]):
            (slot.inputs / at).chmod(0o644)
            with (slot.inputs / at).open("r+b") as file:
                file.write(b"CHANGED")
    assert slot.store.path(ref.files[0].sha256).read_text() == "original"
    got = payload.load(slot.store.place(ref, slot.inputs, share=False)[0], b"", slot.folders)
    assert (got[0].read_text(), got[1]) == ("original", bytes(100_000))


def test_two_make_the_same_folder_at_once(tmp_path: Path) -> None:
    """Who comes second finds it made; what cannot be made at all is an error."""
    target = tmp_path / "final"
    for name in ("first", "second"):
        (tmp_path / name / "lib").mkdir(parents=True)
        settle(tmp_path / name, target)
    assert [path.name for path in target.iterdir()] == ["lib"]
    with pytest.raises(FileNotFoundError):
        settle(tmp_path / "nothing", tmp_path / "other")
