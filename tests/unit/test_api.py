"""What `executor.run` refuses before anything starts, and what it says."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NewType, TypedDict, TypeVar

import numpy as np
import pytest

import executor
from executor import Run, TaskEnvironment
from executor.errors import UsageError
from executor.worker import shapes

env = TaskEnvironment("api-of-tests")
T = TypeVar("T")
Token = NewType("Token", str)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Entry(TypedDict):
    name: str


@env.task
def fold(sequence: str, rounds: int = 3, *names: str, **scores: float) -> dict[str, float]:
    return {sequence: rounds, **dict.fromkeys(names, 0.0), **scores}


@env.task
async def later(x: int) -> int:
    return x


def as_mypy_sees_it() -> tuple[Run[dict[str, float]], Run[int]]:
    """Never called: the types of inputs and of results are those of the task, written with `def` or `async def`."""
    return executor.run(fold, "AAGG", rounds=2), executor.with_options(runtime="process").run(later, 1)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 1),
        (int, np.int64(1)),
        (float, 1),
        (float, np.float32(1)),
        (bytes, b"x"),
        (pathlib.PurePath, pathlib.Path("x")),
        (Colour, Colour.RED),
        (Point, Point(1)),
        (None, None),
        (int | None, None),
        (int | str, "x"),
        (Literal["a", 1], 1),
        (list[int], [1, 2]),
        (Sequence[int], (1, 2, 3)),
        (tuple[int, ...], (1, 2, 3)),
        (tuple[int, str], (1, "x")),
        (dict[str, list[float]], {"x": [1, 2.5]}),
        (Mapping[str, int], {"x": 1}),
        (set[str], {"x"}),
        (np.ndarray, np.zeros(2)),
        (Callable[[int], int], abs),
        (Iterator[int], iter("not looked into")),
        (type[Point], Point),
        (Entry, {"name": 1}),
        (Token, "x"),
        (T, object()),
        (Any, object()),
        ("NoSuchName", object()),
    ],
)
def test_what_fits_or_cannot_be_told_is_let_through(annotation: Any, value: Any) -> None:
    """Numbers of packages are numbers; what an annotation says that we do not know is nobody's mistake."""
    check(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value", "told"),
    [
        (int, "1", '`x` must be a whole number, and is "1"'),
        (int, 1.5, "`x` must be a whole number, and is 1.5"),
        (str, b"x", "`x` must be text, and is b'x'"),
        (bool, 1, "`x` must be true or false, and is 1"),
        (pathlib.Path, 3, "`x` must be the path of a file or folder, and is 3"),
        (int | None, "1", '`x` must be a whole number, and is "1"'),
        (Literal["a", 1], "b", '`x` must be one of "a", 1, and is "b"'),
        (list[int], 1, "`x` must be a list, and is 1"),
        (list[int], [1, "2"], '`x[1]` must be a whole number, and is "2"'),
        (Sequence[int], (1, None), "`x[1]` must be a whole number, and is null"),
        (tuple[int, str], (1,), "`x` must be a tuple of 2, and is (1,)"),
        (dict[str, list[float]], {"a": [1, "2"]}, "`x['a'][1]` must be a number, and is \"2\""),
        (Point, 3, "`x` must be a `test_api.Point`, and is 3"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(annotation: Any, value: Any, told: str) -> None:
    """The element, what was expected there, and what is."""
    with pytest.raises(UsageError) as refused:
        check(annotation, value)
    assert refused.value.why.replace(__name__, "test_api") == told


def check(annotation: Any, value: Any) -> None:
    """A call of a function with one parameter of this type."""
    parameter = {
        "name": "x",
        "type": shapes.describe_type(annotation),
        "required": True,
        "kind": "positional_or_keyword",
    }
    shapes.check_call([parameter], (value,), {}, "env.task")


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((), {}, "`sequence` is missing"),
        (("A",), {"sequence": "A"}, "`sequence` is given twice"),
        (("A", "3"), {}, '`rounds` must be a whole number, and is "3"'),
    ],
)
def test_inputs_are_those_of_the_signature(args: tuple[Any, ...], kwargs: dict[str, Any], told: str) -> None:
    """Missing, given twice, or of the wrong type; more of them where the signature takes any number."""
    shapes.check_call(shapes.describe_parameters(fold.function), ("A", 1, "x"), {"best": 1.0}, fold.name)
    with pytest.raises(UsageError) as refused:
        executor.run(fold, *args, **kwargs)
    assert told in str(refused.value)


def test_there_is_no_run_inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a task nor while a module is imported for one; nor are runs of the past looked up there."""
    monkeypatch.setattr("executor.api.CALLER", [object()])
    for start in (lambda: executor.run(later, 1), lambda: executor.Run.load("last")):
        with pytest.raises(UsageError, match="cannot be used here"):
            start()


def test_an_unknown_runtime_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(UsageError, match="what there is: auto, docker, process"):
        executor.with_options(runtime="podman")
