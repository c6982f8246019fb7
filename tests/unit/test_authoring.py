"""What a workflow is written with: environments, tasks, and what calling a task does in and outside of a run."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import executor as flyte
from executor import authoring
from executor.errors import ProjectError, UsageError
from tests.harness import ROOT

ENV = flyte.TaskEnvironment("authoring-tests")


@ENV.task
def double(x: int, *, by: int = 2) -> int:
    """Twice as much."""
    return x * by


@ENV.task(retries=3, timeout=1.5)
async def later(x: int) -> int:
    """As much, a little later."""
    await asyncio.sleep(0)
    return x


@pytest.fixture
def sent() -> Iterator[list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
    """The calls that a run would send to the host, each of which answers with 42."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def submit(task: authoring.Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        calls.append((task.name, args, kwargs))
        future: Future[Any] = Future()
        future.set_result(lambda: 42)
        return future

    authoring.CALLER.append(submit)
    yield calls
    authoring.CALLER.clear()


def test_outside_a_run_a_task_is_its_function() -> None:
    """That is how it is unit-tested: called, awaited, and either through `.aio`."""
    assert double(4, by=3) == 12
    assert asyncio.run(later.aio(4)) == 4
    assert asyncio.run(double.aio(4)) == 8

    async def both() -> list[int]:
        return [await later(1), await double.aio(1)]

    assert asyncio.run(both()) == [1, 2]


def test_a_timeout_is_a_positive_time_or_none_at_all() -> None:
    """One without end is none; what is no number is refused."""
    assert double._with(0, float("inf"), None).timeout is None
    for wrong in (float("nan"), 0, -1.0, -float("inf")):
        with pytest.raises(UsageError, match="positive"):
            double._with(0, wrong, None)
    assert double._with(0, None, None).timeout is None


def test_inside_a_run_a_call_goes_to_the_host(sent: list[Any]) -> None:
    """And its value comes from there."""
    assert double(4, by=3) == 42
    assert asyncio.run(later.aio(5)) == 42
    assert sent == [
        ("authoring-tests.double", (4,), {"by": 3}),
        ("authoring-tests.later", (5,), {}),
    ]


def test_a_sync_task_does_not_block_its_async_caller(sent: list[Any]) -> None:
    """It is refused with what to write instead."""

    async def caller() -> int:
        return double(1)

    with pytest.raises(UsageError) as caught:
        asyncio.run(caller())
    assert caught.value.hint == "write `await double.aio(…)`"
    assert sent == []


def test_a_task_keeps_what_its_function_says() -> None:
    """Name, module, docstring, and what the decorator was given."""
    assert (double.name, double.short_name, double.__doc__) == ("authoring-tests.double", "double", "Twice as much.")
    assert (double.__module__, double.__qualname__, double.is_async) == (__name__, "double", False)
    assert (double.retries, double.timeout) == (0, None)
    assert (later.retries, later.timeout, later.is_async) == (3, 1.5, True)
    assert ENV.tasks == {"double": double, "later": later}


def test_a_task_is_pickled_by_name() -> None:
    """Code travels with the source; a value that holds a task holds its name."""
    assert pickle.loads(pickle.dumps([double, later])) == [double, later]


@pytest.mark.parametrize("name", ["", "Fold", "a b", "-a", "a-", "a--b", "a/b", "../a", "é", "a\n"])
def test_a_name_that_cannot_be_a_folder_or_tag_is_refused(name: str) -> None:
    """An environment's name is part of paths and of image tags."""
    with pytest.raises(ProjectError, match="cannot name an environment"):
        flyte.TaskEnvironment(name)


def test_a_name_that_is_refused_comes_with_one_that_is_not() -> None:
    """The hint can be typed."""
    with pytest.raises(ProjectError) as caught:
        flyte.TaskEnvironment("My Env!")
    assert caught.value.hint == "rename it, for example `my-env`"
    assert len([each for each in authoring.ENVIRONMENTS if each.name == "My Env!"]) == 0


def test_one_environment_has_one_task_of_a_name() -> None:
    """The second would silently take the place of the first, which a container finds by its name."""
    environment = flyte.TaskEnvironment("crowded")
    environment.task(len)
    with pytest.raises(ProjectError, match="has two tasks named `len`"):
        environment.task(retries=1)(len)


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout": 0}, {"timeout": -1.0}])
def test_impossible_attempts_are_refused(options: dict[str, Any]) -> None:
    """Negative retries, and a time limit that is over before it begins."""
    with pytest.raises(UsageError, match="must"):
        flyte.TaskEnvironment("impossible").task(**options)(lambda: 0)


def test_environments_know_each_other_and_their_place() -> None:
    """Dependencies keep their order, and naming one twice is the same as once."""
    first, second = flyte.TaskEnvironment("first"), flyte.TaskEnvironment("second")
    third = flyte.TaskEnvironment("third", depends_on=[first], extends=(second,), env_vars={"A": "1"})
    third.add_dependency(second, first, second)
    assert (third.depends_on, third.extends, third.env_vars) == ([first, second], [second], {"A": "1"})
    assert third.declared_at[0] == __file__
    assert authoring.ENVIRONMENTS[-3:] == [first, second, third]


def test_a_specification_in_python_becomes_plain_data() -> None:
    """Lists may be any sequence; what is not said is what an environment.yml leaves out."""
    assert flyte.CondaSpec(("python", "numpy"), pip=["idna"], cuda=True).to_json() == {
        "dependencies": ["python", "numpy"],
        "pip": ["idna"],
        "channels": ["conda-forge"],
        "apt": [],
        "base": None,
        "cuda": True,
        "platform": None,
        "variables": {},
    }


def test_every_part_of_a_specification_that_has_a_wrong_type_is_told() -> None:
    """All at once."""
    wrong: dict[str, Any] = {
        "dependencies": "python",
        "pip": None,
        "channels": [3],
        "apt": {"hello"},
        "variables": {"A": 1},
        "base": 12,
        "cuda": 0,
        "platform": ["linux-64"],
    }
    with pytest.raises(ProjectError, match="its `CondaSpec` is wrong") as caught:
        flyte.CondaSpec(**wrong).to_json()
    assert caught.value.why == (
        "`dependencies` must be a list of texts, and is 'python'\n"
        "`pip` must be a list of texts, and is None\n"
        "`channels` must be a list of texts, and is [3]\n"
        "`apt` must be a list of texts, and is {'hello'}\n"
        "`variables` must be a mapping of texts to texts, and is {'A': 1}\n"
        "`base` must be a text or None, and is 12\n"
        "`cuda` must be a bool or None, and is 0\n"
        "`platform` must be a text or None, and is ['linux-64']"
    )


def test_importing_the_package_loads_next_to_nothing() -> None:
    """A task's process must hold the user's modules, and none of the host's."""
    ours = "{name for name in sys.modules if name.partition('.')[0] in ('executor', 'click', 'docker', 'rich', 'yaml')}"
    for line, loaded in [
        ("import executor", ["executor"]),
        ("from executor import Resources", ["executor", "executor.errors", "executor.resources"]),
    ]:
        program = f"import sys; {line}; print(*sorted({ours}))"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split() == loaded


def test_mounts_are_what_was_declared() -> None:
    """Nothing is looked at where a workflow is imported: in a container, a source is not there."""
    mount = flyte.Mount("~/databases")
    env = flyte.TaskEnvironment("mounting", mounts=[mount, flyte.Mount("/nothing/like/this", "/db")])
    assert (mount.source, mount.target, env.mounts[1].target) == ("~/databases", None, "/db")
    assert flyte.TaskEnvironment("mounting-nothing").mounts == ()
