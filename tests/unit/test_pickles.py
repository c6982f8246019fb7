"""The names in a stored value are read off its pickle, and nothing of it is opened."""

from __future__ import annotations

import collections
import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from executor import TaskEnvironment, reference_task
from executor.data.pickles import names_in
from executor.data.store import Store
from executor.worker import payload

env = TaskEnvironment("pickles")


class Thing:
    """Of this module."""

    def __init__(self, inside: Any = None) -> None:
        self.inside = inside


class Harmful:
    """Runs when it is opened."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("harm-was-done",))


@env.task
def work() -> None:
    """A task."""


def names(value: Any, folder: Path) -> frozenset[tuple[str, str]]:
    place, body, fds, _ = payload.dump(value, payload.Folders(str(folder), str(folder), []), keep=True)
    store = Store(folder, folder / "incoming")
    return names_in(store, store.receive(place, body, fds, folder, {}).commit(store))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Thing(), {(__name__, "Thing")}),
        ([Thing(), {"a": (Thing(datetime.date.today()),)}], {(__name__, "Thing"), ("datetime", "date")}),
        (Thing, {(__name__, "Thing")}),
        (collections.OrderedDict(a=Thing()), {("collections", "OrderedDict"), (__name__, "Thing")}),
        (work, {("executor.authoring", "_find_task"), (__name__, "work")}),
        ([work, work, "text"], {("executor.authoring", "_find_task"), (__name__, "work")}),
        (reference_task("other.task"), {("executor.authoring", "_find_reference"), ("", "other.task")}),
        ({"plain": [1, 2.0, "text", None, b"bytes"]}, set()),
        (["_find_task", "executor.authoring", "text"], set()),
        ([Thing(b"x" * 200_000)], {(__name__, "Thing")}),
    ],
)
def test_names(value: Any, expected: set[tuple[str, str]], tmp_path: Path) -> None:
    """Classes, functions and tasks, wherever they are in a value, and also in one that is large."""
    assert names(value, tmp_path) == expected


def test_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be run is named, and not run."""
    monkeypatch.chdir(tmp_path)
    assert names(Harmful(), tmp_path) == {("posix", "mkdir")}
    assert not Path("harm-was-done").exists()


def test_inputs_from_the_command_line_name_nothing(tmp_path: Path) -> None:
    """They are JSON."""
    store = Store(tmp_path, tmp_path / "incoming")
    place: dict[str, Any] = {"at": None, "size": 1, "type": "inputs", "files": []}
    value = store.receive(place, payload.dump_json({"a": "os"}), [], tmp_path, {})
    assert names_in(store, value.commit(store)) == frozenset()
