"""What the host knows of user code: read from JSON, refused where it is none, asked for what is reachable."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from executor.errors import ProjectError
from executor.manifest import Manifest, parse_manifest
from executor.resources import Resources

TASK = {
    "name": "a.work",
    "environment": "a",
    "module": "flow",
    "qualname": "work",
    "file": "flow.py",
    "line": 3,
    "doc": "",
    "parameters": [{"name": "x", "type": {"kind": "int", "text": "int"}, "required": True}],
    "retries": 1,
    "timeout_s": 2.5,
}


def environment(name: str, depends_on: str = "", extends: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "image": None,
        "depends_on": depends_on.split(),
        "extends": extends.split(),
        "resources": Resources(cpu=2).to_json(),
        "env_vars": {},
        "file": "flow.py",
        "line": 1,
    }


def manifest(*environments: dict[str, Any]) -> Manifest:
    doc = {
        "root": "/p",
        "import_roots": ["."],
        "environments": environments,
        "tasks": [TASK],
        "missing": {"np": ["f:1"]},
    }
    return parse_manifest(json.loads(json.dumps(doc)))


def test_a_manifest_is_read_from_json() -> None:
    """Every field arrives in its class."""
    read = manifest(environment("a", "b"), environment("b"))
    assert (read.root, read.import_roots, read.missing) == ("/p", (".",), {"np": ("f:1",)})
    assert (read.environments["a"].depends_on, read.environments["a"].shape.cpus) == (("b",), 2.0)
    task = read.tasks["a.work"]
    assert (task.short_name, task.timeout_s, task.parameters[0].required) == ("work", 2.5, True)
    assert (task.parameters[0].default, task.parameters[0].problem) == (None, "")


@pytest.mark.parametrize("field", ["root", "environments", "tasks"])
def test_what_is_no_manifest_is_refused(field: str) -> None:
    """A field that is missing, at any depth, is told and raises nothing else."""
    doc: dict[str, Any] = {"root": "/p", "import_roots": [], "environments": [environment("a")], "tasks": [TASK]}
    lacking = [{key: value for key, value in doc.items() if key != field}]
    for part in ("environments", "tasks"):
        for key in doc[part][0]:
            changed = copy.deepcopy(doc)
            del changed[part][0][key]
            lacking.append(changed)
    for each in [*lacking, {**doc, "tasks": [None]}, {**doc, "environments": [{**environment("a"), "more": 1}]}]:
        with pytest.raises(ProjectError, match="cannot be read"):
            parse_manifest(each)


def test_a_manifest_survives_its_own_json() -> None:
    """What the record keeps of a project is all of it."""
    whole = {
        **environment("a", "b", "c"),
        "spec": {"pip": ["x"]},
        "preload": ["json"],
        "mounts": [{"source": "/data", "target": "/d"}],
        "secrets": [{"key": "K", "group": None, "variable": "K", "file": False}],
        "network": False,
    }
    read = manifest(whole, environment("b"), environment("c"))
    assert parse_manifest(json.loads(json.dumps(read.to_json()))) == read


def test_what_is_reachable_comes_dependencies_first() -> None:
    """Each once, however many ways lead to it; and nothing that no call can reach."""
    read = manifest(
        environment("root", "left right"),
        environment("left", "base"),
        environment("right", "base left"),
        environment("base"),
        environment("other", "root"),
    )
    assert read.reachable("root") == ["base", "left", "right", "root"]
    assert read.reachable("base") == ["base"]


def test_a_circle_of_dependencies_is_refused() -> None:
    """With the whole circle, and only that."""
    read = manifest(environment("a", "b"), environment("b", "c"), environment("c", "b"))
    with pytest.raises(ProjectError) as caught:
        read.reachable("a")
    assert caught.value.why == "b → c → b"


def test_what_an_environment_extends_comes_before_it() -> None:
    """Directly or not, each once; a circle is refused."""
    read = manifest(
        environment("a", extends="b c"), environment("b", extends="c"), environment("c"), environment("d", extends="d")
    )
    assert read.bases("a") == ["c", "b", "a"]
    assert read.bases("c") == ["c"]
    with pytest.raises(ProjectError, match="extend each other"):
        read.bases("d")


def test_a_call_that_no_depends_on_allows_is_refused_with_the_way_there() -> None:
    """Whoever makes it on the way from the root; what the root does not come to is not its business."""
    doc = {
        "root": "/p",
        "import_roots": ["."],
        "environments": [environment("a", "b"), environment("b"), environment("c")],
        "tasks": [
            {**TASK, "name": "a.root", "calls": {"b.middle": "a.root (f.py:1)", "b.gone": "x"}},
            {**TASK, "name": "a.other", "calls": {"b.leaf": "a.other (f.py:2)"}},
            {
                **TASK,
                "name": "b.middle",
                "environment": "b",
                "calls": {"c.leaf": "b.middle (f.py:3) → helper (f.py:4)"},
            },
            {**TASK, "name": "b.leaf", "environment": "b"},
            {**TASK, "name": "c.leaf", "environment": "c"},
        ],
    }
    read = parse_manifest(doc)
    read.check_calls("a.other")
    with pytest.raises(ProjectError, match=r"`b\.middle` calls `c\.leaf`") as caught:
        read.check_calls("a.root")
    assert caught.value.why == "b.middle (f.py:3) → helper (f.py:4) → c.leaf (flow.py:3)"
    assert caught.value.hint == "add `c` to the `depends_on` of `b` (flow.py:1)"
