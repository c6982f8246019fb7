"""Options made from a signature, and what they make of a command line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from executor.cli import inputs
from executor.errors import UsageError
from executor.manifest import Parameter, TaskEntry

ANY = {"kind": "any", "text": ""}
INT = {"kind": "int", "text": "int"}
FLOAT = {"kind": "float", "text": "float"}
STR = {"kind": "str", "text": "str"}
BOOL = {"kind": "bool", "text": "bool"}
PATH = {"kind": "path", "text": "Path"}
FILE, DIR = {"kind": "file", "text": "File"}, {"kind": "dir", "text": "Dir"}
TAKEN = frozenset({"--runtime", "--json", "-v", "--verbose"})


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "list", "item": item, "text": f"list[{item['text']}]"}


def optional(item: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "optional", "item": item, "text": f"{item['text']} | None"}


def task_with(**parameters: dict[str, Any] | Parameter) -> TaskEntry:
    made = [
        each if isinstance(each, Parameter) else Parameter(name=name, type=each, required=False)
        for name, each in parameters.items()
    ]
    return TaskEntry(
        name="env.work", environment="env", module="flow", qualname="work", file="flow.py", line=1,
        doc="Do it.\n\nx: one line\ny: another", parameters=tuple(made), retries=0, timeout_s=None,
    )  # fmt: skip


Given = Callable[..., tuple[dict[str, Any], dict[str, Path]]]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """What a command line means for a task, in a folder with the file a.fasta and the folder d."""
    (tmp_path / "a.fasta").write_text(">x")
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)

    def parse(task: TaskEntry, *argv: str) -> tuple[dict[str, Any], dict[str, Path]]:
        def callback(runtime: str, **values: Any) -> Any:
            return inputs.read(task, values, TAKEN)

        ours = click.Option(["--runtime"], default="auto")
        command = inputs.WorkflowCommand("work", params=[*inputs.options(task, TAKEN), ours], callback=callback)
        result: tuple[dict[str, Any], dict[str, Path]] = command.main(
            list(argv), "run-local work", standalone_mode=False
        )
        return result

    return parse


@pytest.mark.parametrize(
    ("type", "text", "value"),
    [
        (INT, "-3", -3),
        (FLOAT, "3", 3.0),
        (FLOAT, "-1e-3", -0.001),
        (STR, "3", "3"),
        (STR, "", ""),
        (ANY, "{'no': json}", "{'no': json}"),
        (list_of(INT), "[1, 2]", [1, 2]),
        (list_of(FLOAT), "[]", []),
        ({"kind": "dict", "value": INT, "text": "dict[str, int]"}, '{"a": 1}', {"a": 1}),
        ({"kind": "tuple", "items": [INT, STR], "text": "tuple[int, str]"}, '[1, "a"]', [1, "a"]),
        ({"kind": "record", "fields": {"a": {"type": INT, "required": True}}, "text": "D"}, '{"a": 1}', {"a": 1}),
        (optional(INT), "4", 4),
        (optional(INT), "null", None),
        (optional(STR), "null", "null"),
        ({"kind": "literal", "choices": ["a", 1, True], "text": ""}, "1", 1),
        ({"kind": "literal", "choices": ["a", 1, True], "text": ""}, "true", True),
        ({"kind": "date", "text": "date"}, "2024-02-29", "2024-02-29"),
    ],
)
def test_text_becomes_json_of_the_type(given: Given, type: dict[str, Any], text: str, value: Any) -> None:
    """Numbers, texts as they stand, JSON for what has parts, null where it may be."""
    assert given(task_with(x=type), "--x", text) == ({"x": value}, {})


def test_what_is_not_given_is_left_out(given: Given) -> None:
    """The function's own default holds where it runs; a flag is given both ways."""
    task = task_with(relax=BOOL, sure=optional(BOOL), title=STR, n=INT)
    assert given(task) == ({}, {})
    assert given(task, "--no-relax", "--sure") == ({"relax": False, "sure": True}, {})


def test_files_are_found_and_named_by_key(given: Given, tmp_path: Path) -> None:
    """A path stands for its content, inside a list too; relative paths are from where one stands."""
    task = task_with(sequence_data=PATH, more=list_of(PATH))
    values, files = given(task, "--sequence-data", "a.fasta", "--more", f'["{tmp_path}/a.fasta", "d/../a.fasta"]')
    assert values == {"sequence_data": {"$file": "sequence_data"}, "more": [{"$file": "more[0]"}, {"$file": "more[1]"}]}
    assert {key: path.resolve() for key, path in files.items()} == dict.fromkeys(files, tmp_path / "a.fasta")
    assert all(path.is_absolute() for path in files.values())


def test_an_underscore_is_as_good_as_a_dash(given: Given) -> None:
    """Flyte's users type `--sequence_data`."""
    assert given(task_with(sequence_data=STR), "--sequence_data", "x_y") == ({"sequence_data": "x_y"}, {})


@pytest.mark.parametrize(
    ("type", "text", "what", "hint"),
    [
        (INT, "1.5", 'x: expected a whole number, got "1.5"', ""),
        (FLOAT, "x", 'x: expected a number, got "x"', ""),
        (list_of(FLOAT), '[1, 2, "x"]', 'x[2]: expected a number, got "x"', ""),
        (list_of(FLOAT), "1, 2", "x: `1, 2` is not JSON", "write it like '[1, 2]'"),
        (list_of(INT), "[" * 100_000, "x: `" + "[" * 60 + "` is not JSON", "write it like '[1, 2]'"),
        ({"kind": "literal", "choices": ["a", "b"], "text": ""}, "c", 'x: expected one of "a", "b", got "c"', ""),
        (PATH, "a.fast", "x: there is no file `a.fast`", "did you mean `a.fasta`?"),
        (PATH, "no/a.fasta", "x: there is no file `no/a.fasta`", ""),
        (FILE, "d", "x: `d` is not a regular file", ""),
        (DIR, "a.fasta", "x: `a.fasta` is not a folder", ""),
        (DIR, "nowhere", "x: there is no folder `nowhere`", ""),
        (PATH, os.devnull, f"x: `{os.devnull}` is not a regular file", ""),
        (list_of(PATH), '["a.fasta", 1]', "x[1]: expected the path of a file or folder, got 1", ""),
        (list_of(ANY), '[{"$file": "a"}]', 'x[0]: expected the path of a file or folder, got {"$file": "a"}', ""),
    ],
)
def test_a_wrong_value_is_refused_before_anything_starts(
    given: Given, type: dict[str, Any], text: str, what: str, hint: str
) -> None:
    """The error names the parameter, the element and what was expected."""
    with pytest.raises(UsageError) as caught:
        given(task_with(x=type), "--x", text)
    assert (caught.value.what, caught.value.hint) == (what, hint)


def test_a_file_that_may_not_be_read_is_refused(given: Given) -> None:
    """Before the run, not in the middle of it; root, who may read anything, is somebody else for that long."""
    with tempfile.NamedTemporaryFile(dir=tempfile.gettempdir()) as file:  # its folder is open to everybody
        Path(file.name).chmod(0)
        before = os.geteuid()
        try:
            os.seteuid(before or 65534)
            with pytest.raises(UsageError, match="cannot be read"):
                given(task_with(x=PATH), "--x", file.name)
        finally:
            os.seteuid(before)


def test_what_is_missing_or_unknown_is_named(given: Given) -> None:
    """All that is missing at once, near options for a wrong one, and the usage line with each."""
    task = task_with(
        sequence_data=Parameter(name="sequence_data", type=PATH, required=True),
        n=Parameter(name="n", type=INT, required=True),
    )
    usage = "usage: run-local work [OPTIONS]"
    for argv, what, why in [
        ((), "`work` needs `--sequence-data PATH`, `--n INT`", ""),
        (("--sequence-dat", "x"), "there is no option `--sequence-dat`", "did you mean `--sequence-data`?"),
        (("--n", "1", "--xyzzy"), "there is no option `--xyzzy`", ""),
        (("a.fasta",), "got unexpected extra argument (a.fasta)", ""),
        (("--n",), "option '--n' requires an argument", ""),
    ]:
        with pytest.raises(UsageError) as caught:
            given(task, *argv)
        assert (caught.value.what, caught.value.why, caught.value.hint) == (what, why, usage)


def test_parameters_may_have_any_name(given: Given) -> None:
    """Not even run-local's own options, or two names that look alike, stand in the way."""
    names = ["runtime", "help", "n", "N", "_x", "x", "a_b", "relax", "no_relax", "type", "self_", "_"]
    task = task_with(**{name: BOOL if name == "relax" else STR for name in names})
    flags = ["--input-runtime", "--input-help", "--n", "--N", "--x", "--input-x", "--a-b", "--relax", "--no-relax"]
    flags += ["--type", "--self", "--_"]
    values = ["true" if name == "relax" else f"for {name}" for name in names]
    argv = [part for pair in zip(flags, values, strict=True) for part in pair]
    assert given(task, *argv)[0] == {name: True if name == "relax" else f"for {name}" for name in names}


def test_a_task_that_cannot_be_called_by_name_is_refused() -> None:
    """With the parameter and the reason."""
    problem = Parameter(name="args", type=ANY, required=False, problem="it takes any number of values without names")
    with pytest.raises(UsageError) as caught:
        inputs.options(task_with(args=problem), TAKEN)
    assert caught.value.what == "`env.work` cannot be run from the command line"
    assert caught.value.why == "of its parameter `args`: it takes any number of values without names"


def test_the_help_tells_types_and_defaults() -> None:
    """The docstring keeps its lines; each option says what it takes and what happens without it."""
    task = task_with(
        sequence_data=Parameter(name="sequence_data", type=PATH, required=True),
        relax=Parameter(name="relax", type=BOOL, required=False, default=True),
        file=Parameter(name="file", type=PATH, required=False, default_text="data/x.fasta"),
        title=Parameter(name="title", type=STR, required=False, default=""),
        ranges=Parameter(name="ranges", type=optional(list_of(INT)), required=False),
        mode=Parameter(name="mode", type={"kind": "literal", "choices": ["a", 1], "text": "Mode"}, required=False),
    )
    command = inputs.WorkflowCommand("work", params=[*inputs.options(task, TAKEN)], help=task.doc)
    printed = CliRunner().invoke(command, ["--help"]).output
    assert [line.strip() for line in printed.splitlines()] == [
        "Usage: work [OPTIONS]",
        "",
        "Do it.",
        "",
        "x: one line",
        "y: another",
        "",
        "Options:",
        "--sequence-data PATH  Path; required",
        "--relax / --no-relax  bool; default: true",
        "--file PATH           Path; default: data/x.fasta",
        "--title TEXT          str; default: empty",
        "--ranges JSON         list[int] | None; default: none",
        "--mode a|1            Mode; default: none",
        "--help                Show this message and exit.",
    ]
