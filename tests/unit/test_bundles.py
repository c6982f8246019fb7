"""Bundles: nothing of one is used unless every byte is as it was written; and values are compared without being opened."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.bundles import archive, unpack
from executor.bundles.archive import read_bundle, unpacked, write_bundle
from executor.bundles.compare import compare_values
from executor.data.parsed import Array, parse_value
from executor.data.store import Store, ValueRef
from executor.errors import MachineError, UsageError
from executor.worker import payload

MEMBERS: dict[str, Path | bytes] = {"a": b"one", "deep/er/b": b"", "c" * 150: bytes(5000)}


def write(folder: Path, members: dict[str, Path | bytes] | None = None) -> Path:
    write_bundle(folder / "x.rlb", {"run": "r"}, MEMBERS if members is None else members)
    return folder / "x.rlb"


def refused(source: Path, folder: Path) -> str:
    """Why a bundle is refused; nothing of it is left."""
    with pytest.raises(UsageError) as caught, unpacked(source, folder / "unpacked"):
        pytest.fail("it was taken")
    assert list((folder / "unpacked").iterdir()) == []
    return f"{caught.value.what}: {caught.value.why}"


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    """Every member with its content, and whether it can be run; the same content is the same file."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    source = write(tmp_path, {**MEMBERS, "script": script})
    first = source.read_bytes()
    found = read_bundle(source, tmp_path / "out")
    assert found.about == {"run": "r", "format": 1}
    assert {path: file.read_bytes() for path, file in found.members.items()} == {
        **MEMBERS, "script": b"#!/bin/sh\n",
    }  # fmt: skip
    assert (found.members["script"].stat().st_mode & 0o777, found.members["a"].stat().st_mode & 0o777) == (0o755, 0o644)
    assert write(tmp_path, {**MEMBERS, "script": script}).read_bytes() == first
    with tarfile.open(source) as tar:
        assert tar.getnames() == ["manifest.json", *sorted([*MEMBERS, "script"]), "digest"]


@given(at=st.floats(min_value=0, max_value=1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, at: float, bit: int) -> None:
    """In headers, in content, in what only fills blocks, at the end."""
    folder = tmp_path_factory.mktemp("flip")
    source = write(folder)
    content = bytearray(source.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    source.write_bytes(content)
    assert "is refused" in refused(source, folder)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"\0" * 512]
)
def test_what_is_cut_or_longer_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    source = write(tmp_path)
    source.write_bytes(change(source.read_bytes()))
    assert "is refused" in refused(source, tmp_path)


def forge(folder: Path, entries: list[tarfile.TarInfo], contents: dict[str, bytes], listed: dict[str, Any]) -> Path:
    """A bundle that somebody made by hand, digest and all."""
    body = io.BytesIO()
    manifest = json.dumps({"format": 1, "members": listed}).encode()
    first = tarfile.TarInfo("manifest.json")
    first.size = len(manifest)
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(first, io.BytesIO(manifest))
        for entry in entries:
            entry.size = len(contents.get(entry.name, b""))
            tar.addfile(entry, io.BytesIO(contents.get(entry.name, b"")))
        end = tar.offset
    raw = body.getvalue()[:end]
    (folder / "forged.rlb").write_bytes(raw + archive._tail(hashlib.sha256(raw).hexdigest()))
    return folder / "forged.rlb"


def facts(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "executable": False}


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "a//b", "./a", "", "digest", "a/.."])
def test_no_path_leads_out(tmp_path: Path, name: str) -> None:
    """Whatever its manifest says."""
    source = forge(tmp_path, [entry(name)], {name: b"x"}, {name: facts(b"x")})
    assert "is refused" in refused(source, tmp_path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
             tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE]
)  # fmt: skip
def test_nothing_but_files_is_in_it(tmp_path: Path, kind: bytes) -> None:
    """No link, no device, no file with holes."""
    source = forge(tmp_path, [entry("a", kind, "/etc/passwd")], {}, {"a": facts(b"")})
    assert "is refused" in refused(source, tmp_path)


def test_what_the_manifest_says_is_what_there_is(tmp_path: Path) -> None:
    """Nothing more, nothing less, nothing twice, nothing else, and not larger than announced."""
    good, evil = {"a": b"good"}, {"a": b"evil", "b": b"more"}
    assert "does not allow" in refused(forge(tmp_path, [entry("a"), entry("b")], evil, {"a": facts(b"evil")}), tmp_path)
    assert "does not allow" in refused(forge(tmp_path, [entry("a"), entry("a")], good, {"a": facts(b"good")}), tmp_path)
    assert "is not what" in refused(forge(tmp_path, [entry("a")], evil, {"a": facts(b"good")}), tmp_path)
    assert "were announced" in refused(forge(tmp_path, [entry("a")], evil, {"a": facts(b"")}), tmp_path)
    assert "is not in it" in refused(forge(tmp_path, [], {}, {"a": facts(b"")}), tmp_path)


def test_another_file_is_refused_as_what_it_is(tmp_path: Path) -> None:
    """A later format, a text, a folder, nothing."""
    write_bundle(tmp_path / "later.rlb", {}, {})
    (tmp_path / "text").write_text("hello\n" * 1000)
    assert "is refused" in refused(tmp_path / "text", tmp_path)
    assert "cannot be read" in refused(tmp_path, tmp_path)
    assert "cannot be read" in refused(tmp_path / "nothing", tmp_path)


def test_a_later_format_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no damage."""
    monkeypatch.setattr(archive, "_FORMAT", 2)
    source = write(tmp_path)
    monkeypatch.undo()
    assert "its format is 2" in refused(source, tmp_path)


def test_what_is_there_stays_where_writing_fails(tmp_path: Path) -> None:
    """A bundle replaces another when it is whole."""
    source = write(tmp_path)
    before = source.read_bytes()
    with pytest.raises(MachineError, match="cannot be written"):
        write_bundle(source, {}, {"gone": tmp_path / "gone"})
    with pytest.raises(UsageError, match="cannot be written"):
        write_bundle(tmp_path / "no" / "folder.rlb", {}, {})
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


def test_an_image_gets_no_name_but_its_own(tmp_path: Path) -> None:
    """An archive may say any: which of them the engine would take over is looked at first."""
    content = json.dumps([{"RepoTags": ["debian:bookworm", "run-local/base:x"]}, {"RepoTags": None}]).encode()
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    assert unpack._tags(tmp_path / "0.tar") == {"debian:bookworm", "run-local/base:x"}
    (tmp_path / "1.tar").write_bytes(b"no tar")
    with pytest.raises(UsageError, match="is refused"):
        unpack._tags(tmp_path / "1.tar")


# -- values ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    """An instance of a class."""

    x: float
    tags: set[str]


class Values:
    """A store, and what tasks would have put there."""

    def __init__(self, folder: Path) -> None:
        for name in ("in", "out", "incoming"):
            (folder / name).mkdir()
        self.folder = folder
        self.store = Store(folder / "home", folder / "incoming")

    def put(self, value: Any) -> ValueRef:
        folders = payload.Folders(str(self.folder / "in"), str(self.folder / "out"), [])
        place, body, fds, _ = payload.dump(value, folders, keep=True)
        return self.store.receive(place, body, fds, self.folder / "out", {}).commit(self.store)

    def compare(self, expected: Any, found: Any) -> list[str]:
        lines, unknown = compare_values(self.store, self.put(expected), self.put(found))
        assert not unknown, unknown
        return lines


@pytest.fixture
def values(tmp_path: Path) -> Values:
    return Values(tmp_path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(value=PLAIN)
def test_plain_data_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """By following its pickle."""
    made = Values(tmp_path_factory.mktemp("values"))
    assert parse_value(made.store, made.put(value)) == value


@pytest.mark.parametrize("size", [3, 5000])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "i4", "u2", "u1", "?", ">f4", "f2", "c16", "U3", "M8[s]"])
def test_arrays_are_found_in_what_they_lie_in(values: Values, dtype: str, size: int) -> None:
    """In the pickle or beside it, of every kind."""
    array = np.arange(size).astype("i8").astype(dtype) if dtype != "M8[s]" else np.arange(size).astype(dtype)
    found = parse_value(values.store, values.put({"deep": [array]}))["deep"][0]
    assert isinstance(found, Array)
    assert (found.shape, found.data) == ((size,), array.tobytes())


def test_the_same_is_equal_whatever_its_bytes(values: Values) -> None:
    """A set in another order, an array in another memory, a number that is none."""
    assert values.compare({"a", "b", "c"}, {"c", "b", "a"}) == []
    nan = float("nan")
    assert values.compare([nan, Point(1, {"x"})], [nan, Point(1, {"x"})]) == []
    shared = [1, 2]
    assert values.compare([shared, shared], [[1, 2], [1, 2]]) == []


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        (1, 2, "the value was 1, and is 2"),
        (1.0, 1.5, "the value was 1.0, and is 1.5, 0.5 apart"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "the value['a'][1] was 2, and is 3"),
        ({"a": 1}, {"b": 1}, "the value['a'] is gone"),
        ([1], [1, 2], "the value has 2 elements, and had 1"),
        (Point(1, set()), Point(2, set()), "the value['x'] was 1, and is 2"),
        (1, "1", "the value was 1, and is '1'"),
    ],
)
def test_what_is_different_is_named(values: Values, expected: Any, found: Any, told: str) -> None:
    assert values.compare(expected, found)[0] == told


def test_arrays_are_told_by_how_far_they_are_apart(values: Values) -> None:
    """Shape, dtype, how many, and by how much at most."""
    one, other = np.zeros((40, 50)), np.zeros((40, 50))
    other[3, 4], other[5, 6] = 0.25, -0.5
    [told] = values.compare({"x": one}, {"x": other})
    assert told == "the value['x']: 2 of 2000 elements of float64[40, 50] differ, by at most 0.5"
    [told] = values.compare(one, one.astype("f4"))
    assert told == "the value: it is float32[40, 50], and was float64[40, 50]"
    other[0, 0] = np.nan
    assert "one that is no number" in values.compare(one, other)[0]
    assert values.compare(np.float64(1.0), np.float64(1.5)) == [
        "the value: 1 of 1 elements of float64[] differ, by at most 0.5"
    ]
    assert values.compare(one.astype("c16"), other.astype("c16")) == [
        "the value: the content of <c16[40, 50] is another"
    ]


def test_nothing_of_a_pickle_is_called(values: Values) -> None:
    """Not even what would say so."""

    class Loud:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("it was opened",))

    assert values.compare(Loud(), Loud()) == []
    assert parse_value(values.store, values.put(Loud())).args == ("it was opened",)
