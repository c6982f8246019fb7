"""Types as plain data, and JSON made into the arguments that they ask for."""

# ruff: noqa: UP007, UP045  users spell unions in every way

from __future__ import annotations

import datetime
import enum
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import UsageError
from executor.files import Dir, File
from executor.worker import shapes
from tests.harness import ROOT, Interpreter

if TYPE_CHECKING:
    from decimal import Decimal as Thing  # there for type checkers only


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Chain:
    letter: str
    start: int = 1
    scores: list[float] = field(default_factory=list)
    parent: Chain | None = None


class Model(pydantic.BaseModel):
    name: str
    sizes: list[int]


ACCEPTED = [
    (int, 3, 3),
    (float, 3, 3.0),
    (float, 0.5, 0.5),
    (float, float("inf"), float("inf")),
    (bool, True, True),
    (str, "x", "x"),
    (Any, {"a": [1]}, {"a": [1]}),
    (inspect.Parameter.empty, "x", "x"),
    (Path, {"$file": "k"}, Path("in/k.txt")),
    (Optional[int], None, None),
    (Optional[float], 1, 1.0),
    (int | None, 1, 1),
    (Path | None, {"$file": "k"}, Path("in/k.txt")),
    (Union[int, str], "x", "x"),
    (Union[int, str, None], None, None),
    (Literal["a", 1, None], 1, 1),
    (list, [1, "x"], [1, "x"]),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (Sequence[Path], [{"$file": "k"}], [Path("in/k.txt")]),
    (tuple[int, str], [1, "x"], (1, "x")),
    (tuple[float, ...], [1, 2], (1.0, 2.0)),
    (tuple, [1], (1,)),
    (set[str], ["a", "a"], {"a"}),
    (dict[str, list[float]], {"a": [1]}, {"a": [1.0]}),
    (Mapping[str, int], {"a": 1}, {"a": 1}),
    (Mode, "fast", Mode.FAST),
    (Level, "HIGH", Level.HIGH),
    (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
    (datetime.datetime, "2024-02-29T10:00:00Z", datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.timezone.utc)),
    (Chain, {"letter": "H", "scores": [1]}, Chain("H", 1, [1.0])),
    (list[Chain], [{"letter": "H", "start": 2}], [Chain("H", 2)]),
    (File, {"$file": "k"}, File("in/k.txt")),
    (Optional[Dir], {"$file": "k"}, Dir("in/k.txt")),
    (Annotated[int, "positive"], 3, 3),
    (int | list[int], [1], [1]),
    (float | bool, True, True),
    (File | str, "x", "x"),
    (File | str, {"$file": "k"}, File("in/k.txt")),
    (Model, {"name": "a", "sizes": ["1"]}, Model(name="a", sizes=[1])),
]


@pytest.mark.parametrize(("annotation", "doc", "value"), ACCEPTED, ids=lambda each: str(each)[:30])
def test_json_becomes_the_argument(annotation: Any, doc: Any, value: Any) -> None:
    """A value of the annotated type, whatever way that is spelt; integers are good where numbers are asked for."""
    made = shapes.from_json(annotation, doc, {"k": "in/k.txt"})
    assert made == value
    assert type(made) is type(value)
    json.dumps(shapes.describe_type(annotation))


REFUSED = [
    (int, True, "x: expected a whole number, got true"),
    (int, 1.0, "x: expected a whole number, got 1.0"),
    (float, 10**400, "x: expected a number, got 1" + "0" * 59 + "…"),
    (float, "1", 'x: expected a number, got "1"'),
    (bool, 1, "x: expected true or false, got 1"),
    (str, None, "x: expected text, got null"),
    (Path, "a.txt", 'x: expected the path of a file or folder, got "a.txt"'),
    (Path, {"$file": "other"}, 'x: expected the path of a file or folder, got {"$file": "other"}'),
    (Optional[int], "x", 'x: expected a whole number, got "x"'),
    (Literal["a", 1], True, 'x: expected one of "a", 1, got true'),
    (list[float], [1, 2, "x"], 'x[2]: expected a number, got "x"'),
    (list[int], {"a": 1}, 'x: expected a list, got {"a": 1}'),
    (dict[str, list[int]], {"a": [1], "b": [None]}, 'x["b"][0]: expected a whole number, got null'),
    (tuple[int, str], [1], "x: expected a list of 2, got [1]"),
    (Mode, "FAST", 'x: expected one of "fast", "slow", got "FAST"'),
    (datetime.date, "2023-02-29", 'x: expected a date like 2024-12-31, got "2023-02-29"'),
    (Chain, {"letter": 1}, "x.letter: expected text, got 1"),
    (list[Chain], [{}], "x[0]: `letter` is missing"),
    (Chain, {"letter": "H", "strat": 1}, "x: there is no `strat`"),
    (str, ["y" * 100], 'x: expected text, got ["' + "y" * 58 + "…"),
    (File, "a.txt", 'x: expected the path of a file, got "a.txt"'),
    (int | list[int], "x", 'x: expected a whole number or a list, got "x"'),
    (Model, {"name": "a"}, "x: this is no `Model`"),
]


@pytest.mark.parametrize(("annotation", "doc", "what"), REFUSED, ids=lambda each: str(each)[:30])
def test_a_wrong_value_is_told_with_its_place(annotation: Any, doc: Any, what: str) -> None:
    """The host and the container say the same: which element, what it should be, what it is."""
    with pytest.raises(UsageError) as caught:
        shapes.from_json(annotation, doc, {"k": "in/k.txt"}, "x")
    assert caught.value.what == what


@pytest.mark.parametrize(
    ("annotation", "kind", "text"),
    [
        (int, "int", "int"),
        (Path, "path", "Path"),
        (list[Path], "list", "list[Path]"),
        (Optional[int], "optional", "Optional[int]"),
        (int | None, "optional", "int | None"),
        (Any, "any", "Any"),
        ("np.ndarray", "any", "np.ndarray"),
        (inspect.Parameter.empty, "any", ""),
        (dict[int, str], "any", "dict[int, str]"),
        (bytes, "any", "bytes"),
        (Literal[b"x"], "any", "Literal[b'x']"),
    ],
    ids=str,
)
def test_a_type_has_a_kind_and_its_text(annotation: Any, kind: str, text: str) -> None:
    """What is not understood is `any`, and still has its text."""
    doc = shapes.describe_type(annotation)
    assert (doc["kind"], doc["text"]) == (kind, text)


def test_a_dataclass_that_holds_itself_ends() -> None:
    """Its own kind inside it is `any`."""
    parent = shapes.describe_type(Chain)["fields"]["parent"]["type"]
    assert (parent["kind"], parent["item"]["kind"]) == ("optional", "any")


def test_annotations_are_resolved_one_by_one() -> None:
    """One that names what is not there leaves the others alone."""

    def task(a: Thing, b: Optional[int], c: list[Chain], d, *, e: float = 1) -> Nothing: ...  # type: ignore[no-untyped-def, name-defined]  # noqa: ANN001, F821

    hints = shapes.resolve_hints(task)
    assert (hints["a"], hints["b"], hints["c"], hints["e"]) == ("Thing", Optional[int], list[Chain], float)
    made = shapes.arguments(task, {"a": "x", "c": [{"letter": "L"}], "d": [1], "e": 2}, {})
    assert made == {"a": "x", "c": [Chain("L")], "d": [1], "e": 2.0}


def test_a_file_is_found_without_a_type() -> None:
    """The host may understand an annotation that an older Python in the container does not."""
    made = shapes.from_json("Path | None", [{"$file": "k"}, {"a": {"$file": "k"}}], {"k": "in/k"})
    assert made == [Path("in/k"), {"a": Path("in/k")}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([annotation for annotation, _, _ in ACCEPTED]), JSON)
def test_any_json_is_taken_or_refused(annotation: Any, doc: Any) -> None:
    """Nothing but `UsageError` comes out, and what is taken passes the host's check from plain data too."""

    def take(value: Any, at: str, kind: str) -> Any:
        raise UsageError(at)

    try:
        shapes.from_json(annotation, doc, {})
    except UsageError:
        if annotation is not Model:  # what is in it, only pydantic checks
            with pytest.raises(UsageError):
                shapes.check(json.loads(json.dumps(shapes.describe_type(annotation))), doc, "x", take)


def test_types_mean_the_same_in_every_python(interpreters: list[Interpreter]) -> None:
    """What the host's Python describes, the container's makes."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import dataclasses, datetime, pathlib, typing\n"
        "from executor.worker import shapes\n"
        "@dataclasses.dataclass\nclass D:\n    n: 'int'\n    p: typing.Optional[pathlib.Path] = None\n"
        "def f(a: typing.Optional[float], b: 'typing.List[D]', c: typing.Tuple[int, ...], d: 'nowhere.X', "
        "e: typing.Literal['x'], g: datetime.datetime): ...\n"
        "docs = {'a': 1, 'b': [{'n': 1, 'p': {'$file': 'k'}}], 'c': [1], 'd': 's', 'e': 'x', 'g': '2024-01-01T00:00:00Z'}\n"
        "made = shapes.arguments(f, docs, {'k': '/in/k'})\n"
        "print({k: v for k, v in made.items() if k != 'g'}, made['g'].isoformat())\n"
        "print(list(shapes.signature(f).parameters), shapes.describe_type(typing.List[pathlib.Path])['text'])\n"
    )
    for each in interpreters:
        assert each.run(program, str(ROOT)) == (
            "{'a': 1.0, 'b': [D(n=1, p=PosixPath('/in/k'))], 'c': (1,), 'd': 's', 'e': 'x'} 2024-01-01T00:00:00+00:00\n"
            "['a', 'b', 'c', 'd', 'e', 'g'] List[Path]\n"
        ), each


def example(
    n: int, ratio: float = 0.5, *more: str, mode: Mode = Mode.FAST, chain: Optional[Chain] = None, **rest: Any
) -> None:
    """What calls are checked against."""


def plain(n: int, paths: list[Path], pair: tuple[int, str] = (1, "a"), table: Optional[dict[str, int]] = None) -> None:
    """The same without ways to give more than it names."""


class Number(int):
    """A number of somebody else's."""


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (example, (1, 2, "a", "b"), {"mode": Mode.SLOW, "chain": Chain("H"), "other": object()}),
        (example, (True,), {}),
        (plain, (Number(3), ["a", Path("b"), File("c")]), {"pair": [1, "a"], "table": None}),
        (plain, (1, iter([])), {"table": {"a": 1}}),
    ],
)
def test_a_call_that_fits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Also where Python is generous."""
    shapes.check_call(shapes.describe_parameters(function), args, kwargs, "env.task")


def test_a_call_is_refused_with_all_that_is_wrong() -> None:
    """Missing, unknown, given twice, too many, of a wrong type; and what it should be."""
    with pytest.raises(UsageError, match=r"task `env\.plain` cannot be called like this") as caught:
        shapes.check_call(
            shapes.describe_parameters(plain),
            ("x", 3, (1, 2), {"a": "b"}, 5),
            {"pair": (1, "a"), "tabel": {}},
            "env.plain",
        )
    assert caught.value.why.splitlines() == [
        "it takes 4 values by position, and 5 are given",
        "`pair` is given twice",
        "there is no `tabel`; did you mean `table`?",
        '`n` must be a whole number, and is "x"',
        "`paths` must be a list, and is 3",
        "`pair[1]` must be text, and is 2",
        "`table['a']` must be a whole number, and is \"b\"",
    ]
    assert caught.value.hint.startswith("it is `plain(n: int, paths: list[Path], pair: tuple[int, str] = …")
    with pytest.raises(UsageError) as caught:
        shapes.check_call(shapes.describe_parameters(plain), (), {}, "env.plain")
    assert caught.value.why.splitlines() == ["`n` is missing", "`paths` is missing"]
