"""Values go through the payload format and the store, and come back as they were."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.data.leases import settle
from executor.data.store import Blob, FileRef, Given, Store, Value, ValueRefused, read_value
from executor.errors import UsageError
from executor.worker import groups, memory, payload
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
        self.given: Given = {}

    def send(self, value: Any, *, keep: bool = False) -> Any:
        """Task → host → task."""
        return self.give(self.take(payload.dump(value, self.folders, keep=keep)))

    def take(self, parcel: payload.Parcel) -> Value:
        """Task → host."""
        place, body, fds, _ = parcel
        return self.store.receive(json.loads(json.dumps(place)), body, fds, self.outputs, self.given)

    def give(self, value: Value, *, share: bool = True) -> Any:
        """Host → task."""
        place, body, fds = self.store.place(value, self.inputs, self.given, share=share)
        return payload.load(json.loads(json.dumps(place)), body, self.folders, fds)


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
    value = slot.take(payload.dump(bytearray(800_000), slot.folders, keep=False))
    first, second = slot.give(value), slot.give(value)
    first[:8] = b"changed!"
    assert bytes(second[:8]) == bytes(8)
    ref = value.commit(slot.store)
    assert slot.store.path(ref.sha256).stat().st_size == ref.size > 800_000
    third = slot.give(value)
    third[:8] = b"changed!"
    assert bytes(slot.give(value)) == bytes(800_000)


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
    parcel = payload.dump(made, slot.folders, keep=True)
    made.write_text("after!")
    assert slot.give(slot.take(parcel)).read_text() == "before"


def test_a_given_file_is_passed_on_by_name_and_not_copied(slot: Slot) -> None:
    """A file that the host gave is handed on as what it is; one that it did not give is refused."""
    made = slot.task / "work" / "in.fasta"
    made.write_text(">H")
    given_file = slot.send(made)
    parcel = payload.dump(given_file, slot.folders, keep=True)
    passed = slot.take(parcel)
    assert list(slot.outputs.iterdir()) == []
    assert (slot.give(passed).name, slot.give(passed).read_text()) == ("in.fasta", ">H")
    slot.given.clear()
    with pytest.raises(ValueRefused, match="not given"):
        slot.take(parcel)


def test_a_path_elsewhere_stays_a_path(slot: Slot) -> None:
    """A path outside the task's own folders, such as a mounted database, travels by name."""
    assert slot.send(Path("/databases/uniref90.fasta")) == Path("/databases/uniref90.fasta")


def test_a_folder_travels_by_content(slot: Slot, tmp_path: Path) -> None:
    """With what is in it, links that stay in it included; part of it can be passed on without being copied."""
    made = slot.task / "work" / "results"
    (made / "deep" / "empty").mkdir(parents=True)
    (made / "deep" / "a.txt").write_text("A")
    (made / "run.sh").write_text("#!")
    (made / "run.sh").chmod(0o755)
    (made / "link").symlink_to("deep/a.txt")
    value = slot.take(payload.dump(made, slot.folders, keep=True))
    got = slot.give(value)
    assert (got.name, (got / "deep" / "a.txt").read_text(), (got / "link").readlink()) == (
        "results",
        "A",
        Path("deep/a.txt"),
    )
    assert (os.access(got / "run.sh", os.X_OK), os.access(got / "deep" / "a.txt", os.X_OK)) == (True, False)
    assert (got / "deep" / "empty").is_dir()
    again = slot.send([got / "deep", got / "run.sh", got])
    assert sorted(path.name for path in again[0].iterdir()) == ["a.txt", "empty"]
    assert (again[1].read_text(), (again[2] / "link").read_text()) == ("#!", "A")
    ref = read_value(json.loads(json.dumps(value.commit(slot.store).to_json())))
    target = slot.store.export(ref.files[0], tmp_path / "out")
    assert ((target / "link").read_text(), os.access(target / "run.sh", os.X_OK)) == ("A", True)
    assert slot.store.path(hashlib.sha256(b"A").hexdigest()).stat().st_mode & 0o111 == 0


@pytest.mark.parametrize("link", ["/etc/passwd", "../secret", "deep/../../secret"])
def test_a_link_that_leads_out_of_a_folder_is_refused(slot: Slot, link: str) -> None:
    """By name, and whatever it leads to stays unread."""
    made = slot.task / "work" / "results"
    (made / "deep").mkdir(parents=True)
    (made / "link").symlink_to(link)
    with pytest.raises(UsageError, match="results") as caught:
        slot.send(made)
    assert "`link`" in caught.value.why


@pytest.mark.parametrize(
    "tree",
    [
        [["../a", "file", "v1", False]],
        [["/a", "file", "v1", False]],
        [["b/a", "file", "v1", False]],
        [["l", "link", "../../x"]],
        [["l", "link", "/x"]],
        [["l", "link", "."], ["l/a", "file", "v1", False]],
        [["a", "dir"], ["a", "file", "v1", False]],
        [["a", "file", "../v1", False]],
        [["..", "dir"]],
    ],
)
def test_a_folder_that_leads_elsewhere_is_refused(slot: Slot, tree: list[Any]) -> None:
    """Whatever a task says is in its folder, nothing is written or read outside of that."""
    (slot.outputs / "v1").write_text("content")
    place = {"size": 1, "at": None, "files": [{"name": "a", "tree": tree}]}
    with pytest.raises(ValueRefused):
        slot.store.receive(place, b"", [], slot.outputs, {})


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
        slot.store.receive({"size": 1, "at": name, "files": []}, b"", [], slot.outputs, {})
    assert secret.read_text() == "root only"
    assert not list((tmp_path / "home" / "incoming").iterdir())


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"at": 3, "files": []},
        {"at": None},
        {"at": None, "files": [{}]},
        {"fd": 0, "files": []},
        {"at": None, "files": [], "texts": 3},
        {"at": None, "files": [{"name": "a", "tree": 3}]},
        {"at": None, "files": [{"name": "a", "tree": [["b"]]}]},
    ],
)
def test_a_place_that_makes_no_sense_is_refused(slot: Slot, place: dict[str, Any]) -> None:
    """Whatever a task says of its value, the answer is a refusal and not a crash."""
    with pytest.raises(ValueRefused):
        slot.store.receive(place, b"", [], slot.outputs, {})


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../../etc/passwd", "a/../..", "x" * 300, "\0"])
def test_a_name_of_a_file_leads_nowhere(slot: Slot, tmp_path: Path, name: str) -> None:
    """Whatever a task calls its file, it lands under a plain name in the folders of whoever gets it."""
    (slot.outputs / "v1").write_text("content")
    place = {"size": 1, "at": None, "files": [{"name": name or ".", "at": "v1"}]}
    value = slot.store.receive(place, b"", [], slot.outputs, {})
    back, _, _ = slot.store.place(value, slot.inputs, {})
    assert (slot.inputs / back["files"][0]["at"]).read_text() == "content"
    target = slot.store.export(value.commit(slot.store).files[0], tmp_path / "outputs")
    assert (target.parent, target.read_text()) == (tmp_path / "outputs", "content")


def test_two_files_of_one_name_are_both_exported(tmp_path: Path) -> None:
    """Nothing in the user's folder is overwritten."""
    store = Store(tmp_path / "home", tmp_path / "home" / "incoming")
    refs: list[FileRef] = []
    for text in ("one", "two"):
        (tmp_path / "same.txt").write_text(text)
        value = Value(Blob(data=b""), [store.put_file(tmp_path / "same.txt", "")])
        refs += value.commit(store).files
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
    assert len(preview(bytes(10**8), {})["text"]) < 400
    assert preview(bytearray(10**6), {})["text"].startswith("bytearray(b'")
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


def test_nobody_writes_to_what_is_in_the_store(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task is given is read-only, and where that does not keep it from writing, it is a copy."""
    (slot.task / "work" / "given.txt").write_text("original")
    monkeypatch.setattr(memory, "make_sealed", lambda *_: None)
    value = slot.take(payload.dump([slot.task / "work" / "given.txt", bytes(100_000)], slot.folders, keep=False))
    ref = value.commit(slot.store)
    for path in (slot.store.path(ref.sha256), slot.store.path(ref.files[0].sha256)):
        assert path.stat().st_mode & 0o222 == 0
    for _ in range(2):
        placed, _, _ = slot.store.place(value, slot.inputs, slot.given, share=False)
        for at in (placed["at"], placed["files"][0]["at"]):
            (slot.inputs / at).chmod(0o644)
            with (slot.inputs / at).open("r+b") as file:
                file.write(b"CHANGED")
    assert slot.store.path(ref.files[0].sha256).read_text() == "original"
    got = slot.give(value, share=False)
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


class Array:
    """What NumPy does with its arrays: the data travels beside the pickle."""

    def __init__(self, data: Any) -> None:
        self.data = memoryview(data)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Array, (pickle.PickleBuffer(self.data),))


def test_the_same_array_handed_on_is_written_once(slot: Slot) -> None:
    """What a task was given and has not changed goes on by its name; also a part of it, and through a third task."""
    array = Array(bytearray(os.urandom(400_000)))
    first = slot.take(payload.dump({"a": array}, slot.folders, keep=True))
    got = slot.give(first)["a"]
    second = payload.dump([got, Array(got.data[4096:200_000])], slot.folders, keep=True)
    assert second.place["size"] < 2000
    value = slot.take(second)
    again, part = slot.give(value)
    assert (bytes(again.data), bytes(part.data)) == (bytes(array.data), bytes(array.data)[4096:200_000])
    third = slot.take(payload.dump(again, slot.folders, keep=True))
    refs = [each.commit(slot.store) for each in (first, value, third)]
    assert refs[1].files[0].sha256 == refs[2].files[0].sha256 == refs[0].sha256
    assert bytes(slot.give(third).data) == bytes(array.data)


def test_a_changed_array_is_written_again(slot: Slot) -> None:
    """One byte is enough, and nobody else sees the change."""
    array = Array(bytearray(400_000))
    value = slot.take(payload.dump(array, slot.folders, keep=True))
    got = slot.give(value)
    got.data[300_000] = 1
    changed = payload.dump(got, slot.folders, keep=True)
    assert changed.place["size"] > 400_000
    assert slot.give(slot.take(changed)).data[300_000] == 1
    assert slot.give(value).data[300_000] == 0


def test_memory_that_can_still_be_changed_is_refused(slot: Slot, tmp_path: Path) -> None:
    """Neither a memfd without its seals nor a file, a folder or a pipe is taken for a value."""
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    (tmp_path / "file").write_text("x")
    folder, file = os.open(tmp_path, os.O_DIRECTORY), os.open(tmp_path / "file", os.O_RDONLY)
    for fd in (loose, folder, file, os.pipe()[0]):
        with pytest.raises(ValueRefused, match="change"):
            slot.store.receive({"size": 1, "at": None, "fd": 0, "files": []}, b"", [fd], slot.outputs, {})
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_without_room_in_memory_a_value_is_a_file(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer is not killed for a second copy of its value."""
    monkeypatch.setattr(groups, "memory_use", lambda: (1_000_000, 700_000))
    parcel = payload.dump(bytearray(400_000), slot.folders, keep=True)
    assert (parcel.fds, parcel.place["at"]) == ([], "v1")
    assert slot.give(slot.take(parcel)) == bytes(400_000)


ARRAYS = st.recursive(
    st.integers(1, 3).map(lambda size: Array(bytearray(os.urandom(size * 50_000)))) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)


def _arrays(value: Any) -> list[Array]:
    if isinstance(value, Array):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [array for each in inside for array in _arrays(each)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(ARRAYS, st.booleans())
def test_no_buffer_is_shared_by_two(slot: Slot, value: Any, committed: bool) -> None:
    """Whatever one receiver does to its arrays, neither the sender nor another receiver sees it; nor after a hop."""
    sent = slot.take(payload.dump(value, slot.folders, keep=True))
    if committed:
        sent.commit(slot.store)
    contents = [bytes(array.data) for array in _arrays(value)]
    first = slot.give(sent)
    passed = slot.take(payload.dump(first, slot.folders, keep=True))
    for array in _arrays(first):
        array.data[:] = bytes(len(array.data))
    for other in (value, slot.give(sent), slot.give(passed)):
        assert [bytes(array.data) for array in _arrays(other)] == contents
