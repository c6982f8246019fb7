"""Which tasks a function is seen to call."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from executor import authoring
from executor.authoring import Task
from executor.worker.calls import calls_of

HEAD = """\
import executor
env = executor.TaskEnvironment("a")
@env.task
def leaf(x=0): return x
@env.task
def other(): pass
"""

Calls = Callable[[str], dict[str, str]]


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    """Tells the calls of the task `root` of a module with this text, after `leaf` and `other` of environment `a`."""
    before = len(authoring.ENVIRONMENTS)

    def tell(text: str) -> dict[str, str]:
        path = tmp_path / "calls_flow.py"
        path.write_text(HEAD + dedent(text))
        module = types.ModuleType("calls_flow")
        sys.modules["calls_flow"] = module
        exec(compile(path.read_text(), str(path), "exec"), vars(module))
        root = vars(module)["root"]
        assert isinstance(root, Task)
        return calls_of(root, str(tmp_path))

    yield tell
    del authoring.ENVIRONMENTS[before:]
    sys.modules.pop("calls_flow", None)


@pytest.mark.parametrize(
    "body",
    [
        "return leaf()",
        "return leaf.aio()",
        "return [leaf(x) for x in range(3)]",
        "return map(leaf, [1])",
        "call = lambda: leaf()\n    return call()",
        "def inner(): return leaf()\n    return inner()",
        "import sys\n    return sys.modules[__name__].leaf if False else leaf",
    ],
)
def test_a_task_that_is_named_is_called(calls: Calls, body: str) -> None:
    """Directly, in a comprehension, a lambda, a function inside."""
    assert calls(f"@env.task\ndef root():\n    {body}\n") == {"a.leaf": "a.root (calls_flow.py:7)"}


def test_the_way_leads_through_functions_of_the_project(calls: Calls) -> None:
    """Also where they call each other in a circle; functions of others are not looked into."""
    text = """
        import os.path
        def one(): return two()
        def two(): return (one(), leaf(), os.path.join)
        @env.task
        def root(): return one()
    """
    assert calls(text) == {"a.leaf": "a.root (calls_flow.py:11) → one (calls_flow.py:9) → two (calls_flow.py:10)"}


@pytest.mark.parametrize(
    "text",
    [
        "@env.task\ndef root(leaf=1): return leaf\n",
        "@env.task\ndef root():\n    leaf = 1\n    return leaf\n",
        "@env.task\ndef root(x=0): return root(x + 1)\n",
        "@env.task\ndef root(): return leaf.name, leaf.function(1), leaf.__wrapped__(1)\n",
        "class Other: leaf = 3\n@env.task\ndef root(): return Other.leaf, Other().leaf\n",
    ],
)
def test_what_only_has_its_name_is_no_task(calls: Calls, text: str) -> None:
    """A parameter, a variable, an attribute of something else, the task itself, or what a task has beside its call."""
    assert calls(text) == {}


def test_functions_that_are_installed_inside_the_project_are_not_looked_into(calls: Calls) -> None:
    """A virtual environment in the project's folder is none of its source."""
    text = """
        import os
        path = os.path.join(os.path.dirname(leaf.function.__code__.co_filename), ".venv/lib/site-packages/x.py")
        names = {"leaf": leaf}
        exec(compile("def installed(): return leaf()", path, "exec"), names)
        installed = names["installed"]
        @env.task
        def root(): return installed()
    """
    assert calls(text) == {}


def test_a_function_with_very_many_names_is_read_like_any_other(calls: Calls) -> None:
    """Python writes names beyond the 256th in another way."""
    many = ", ".join(f"name{number}" for number in range(300))
    text = f"""
        import types
        flows = types.ModuleType("flows")
        flows.leaf = leaf
        @env.task
        def root(): return {many}, flows.leaf(), other.name
    """
    assert list(calls(text)) == ["a.leaf"]


def test_a_task_of_a_module_is_found_by_its_attribute(calls: Calls) -> None:
    """`module.task()`, where the module is named."""
    text = """
        import types
        flows = types.ModuleType("flows")
        flows.leaf = leaf
        def outer():
            kept = other
            @env.task
            def root(): return flows.leaf(), kept
            return root
        root = outer()
    """
    found = calls(text)
    assert sorted(found) == ["a.leaf", "a.other"]
    assert all(os.sep not in way for way in found.values())
