"""Bad input: the whole of what is said, the right exit code, and nothing made."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from tests.faults.conftest import files_below
from tests.harness import Finished, MakeProject, RunLocal

PYTHON = ["python >=3.10"]
FLOW = """
    import pathlib

    from executor import Resources, TaskEnvironment

    env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"))
    stranger = TaskEnvironment("root", resources=Resources(cpu=0.5, memory="256Mi"))
    huge = TaskEnvironment("huge", image="envs/leaf/environment.yml", resources=Resources(memory="4000Gi"))
    gpu = TaskEnvironment("gpu", image="envs/leaf/environment.yml", resources=Resources(gpu=1))
    lost = TaskEnvironment("lost")


    @env.task
    def work(path: pathlib.Path, count: int = 1) -> int:
        return count


    @stranger.task
    def elsewhere() -> int:
        return 1


    @env.task
    def call_openly() -> int:
        return elsewhere()


    HIDDEN = [elsewhere]  # in a place that reading the source does not see


    @env.task
    def call_stranger() -> int:
        return HIDDEN[0]()


    @huge.task
    def ask_for_memory() -> int:
        return 1


    @gpu.task
    def ask_for_gpu() -> int:
        return 1


    @lost.task
    def without_spec() -> int:
        return 1
"""


def told(done: Finished, root: Path) -> str:
    """What it said, without what differs from one run and one machine to the next."""
    text = done.stderr.replace(str(root), "PROJECT")
    text = text.replace(
        "`ask_for_gpu`, `ask_for_memory`, `call_openly`, `call_stranger`, `elsewhere`, `without_spec`, `work`", "TASKS"
    )
    text = re.sub(r"run \d{8}-\d{6}-[0-9a-f]{4}", "run ID", text)
    text = re.sub(r"(run-local (show|logs)) \d{8}-\d{6}-[0-9a-f]{4}", r"\1 ID", text)
    text = re.sub(r"\d+\.\d s\b", "0.0 s", text)
    return re.sub(r"this machine offers [0-9.]+", "this machine offers N", text)


def check(
    run_local: RunLocal, root: Path, arguments: list[str], code: int, text: str, env: Mapping[str, str] | None = None
) -> None:
    """The command ends with this code and text, prints no result, and makes nothing in the project."""
    before = files_below(root)
    done = run_local(*arguments, cwd=root, env=env)
    assert told(done, root) == dedent(text).lstrip("\n")
    assert (done.code, done.stdout) == (code, "")
    assert files_below(root) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["wrok"],
            """
            error: there is no command and no task `wrok`
              why: below `PROJECT` there are TASKS
              hint: did you mean `work`?
            """,
        ),
        (
            ["work", "--path", "flow.py", "--cuont", "3"],
            """
            error: there is no option `--cuont`
              why: did you mean `--count` or `--runtime` or `--json`?
              hint: usage: run-local work [OPTIONS]
            """,
        ),
        (
            ["work"],
            """
            error: `work` needs `--path PATH`
              hint: usage: run-local work [OPTIONS]
            """,
        ),
        (
            ["work", "--path", "folw.py"],
            """
            error: path: there is no file `folw.py`
              why: looked at `PROJECT/folw.py`
              hint: did you mean `flow.py`?
            """,
        ),
        (
            ["work", "--path", "flow.py", "--count", "many"],
            """
            error: count: expected a whole number, got "many"
            """,
        ),
    ],
)
def test_a_wrong_command_line(run_local: RunLocal, project: MakeProject, arguments: list[str], text: str) -> None:
    """Exit code 2, and what was probably meant; no run begins."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})
    check(run_local, root, arguments, 2, text)


def test_a_workflow_that_does_not_import(run_local: RunLocal, project: MakeProject) -> None:
    """The author sees their own traceback, and none of our frames."""
    source = """
        from executor import TaskEnvironment

        env = TaskEnvironment("leaf")
        limit = int("many")


        @env.task
        def work() -> int:
            return limit
    """
    root = project({"flow.py": source}, {"leaf": PYTHON})
    done = run_local("work", cwd=root)
    assert done.code == 2
    assert 'flow.py", line 4' in done.stderr
    assert "ValueError: invalid literal for int() with base 10: 'many'" in done.stderr
    assert "executor" not in done.stderr.replace("from executor import", "")
    assert "cannot be imported" in done.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            'one = TaskEnvironment("one")\ntwo = TaskEnvironment("two", depends_on=[one])\none.depends_on.append(two)\n',
            ["one", "two"],
        ),
        ('one = TaskEnvironment("twin")\ntwo = TaskEnvironment("twin")\n', ["twin"]),
    ],
)
def test_impossible_declarations(run_local: RunLocal, project: MakeProject, source: str, words: list[str]) -> None:
    """Environments that depend on each other in a circle, or share a name: exit code 2, and both named."""
    tasks = "\n\n@one.task\ndef work() -> int:\n    return 1\n\n\n@two.task\ndef more() -> int:\n    return 1\n"
    root = project({"flow.py": "from executor import TaskEnvironment\n\n" + source + tasks}, {"one": PYTHON})
    done = run_local("work", cwd=root)
    assert done.code == 2, done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "channels: [conda-forge]\ndependencies:\n  - python\n  broken: [\n",
            """
              why: envs/leaf/environment.yml:4:3: expected <block end>, but found '?'
            """,
        ),
        (
            "channels: [conda-forge]\ndependencis:\n  - python\n",
            """
              why: envs/leaf/environment.yml:2: unknown key `dependencis` in environment.yml; did you mean `dependencies`?
            """,
        ),
    ],
)
def test_a_wrong_specification(run_local: RunLocal, project: MakeProject, spec: str, text: str) -> None:
    """Exit code 3, with the line, before a run has begun."""
    root = project({"flow.py": FLOW}, {"leaf": spec, "root": PYTHON})
    done = run_local("call_stranger", "--runtime", "process", cwd=root)
    assert done.code == 3, done.stderr
    assert dedent(text).strip() in told(done, root)
    assert "Traceback" not in done.stderr
    assert not done.stderr.startswith("run ")


def test_an_environment_without_specification(run_local: RunLocal, project: MakeProject) -> None:
    """Exit code 3: where it was looked for, where it is declared, and what to write."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})
    done = run_local("without_spec", "--runtime", "process", cwd=root)
    error = told(done, root)
    assert done.code == 3, error
    assert "error: environment `lost` has no specification\n" in error
    assert "declared at flow.py:9" in error
    assert "write `envs/lost/environment.yml`" in error


def test_a_specification_that_nothing_satisfies(run_local: RunLocal, project: MakeProject) -> None:
    """Exit code 3: the solver's reason, and whose requirement it is; no lock is left."""
    root = project({"flow.py": FLOW}, {"leaf": ["python >=3.10", "python <3.9"], "root": PYTHON})
    done = run_local("call_stranger", "--runtime", "process", cwd=root)
    assert done.code == 3, done.stderr
    assert "error: environment `leaf` cannot be solved" in done.stderr
    assert "`leaf` asks for `python <3.9` (envs/leaf/environment.yml:4)" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_below(root / "envs/leaf") == {"environment.yml"}
    document = run_local("call_stranger", "--runtime", "process", "--json", cwd=root).document
    shown = run_local("show", document["run"], "--json", cwd=root).document
    assert document["error"]["what"] == shown["error"]["what"] == "environment `leaf` cannot be solved"
    assert "error: environment `leaf` cannot be solved" in run_local("show", document["run"], cwd=root).stdout


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("ask_for_memory", "`huge` asks for 4000.0 GiB of memory, and there are N GiB"),
        ("ask_for_gpu", "`gpu` asks for 1 GPU, and this machine has no GPU (…)"),
    ],
)
def test_more_than_the_machine_has(
    run_local: RunLocal, project: MakeProject, runtime: str, task: str, reason: str
) -> None:
    """Refused before anything is made, never left to wait, and never run with less."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})
    done = run_local(task, "--runtime", runtime, cwd=root)
    assert (done.code, done.stdout) == (4, "")
    said = re.sub(r"no GPU \(.*\)$", "no GPU (…)", told(done, root), flags=re.MULTILINE)
    assert re.sub(r"[0-9.]+ GiB$", "N GiB", said, flags=re.MULTILINE) == (
        f"error: this machine is too small\n  why: {reason}\n"
        "  hint: ask for less: `resources=Resources(cpu=…, memory=…, gpu=…)`; `run-local doctor` shows what there is\n"
    )


def test_a_call_that_the_source_shows_and_nothing_declares(run_local: RunLocal, project: MakeProject) -> None:
    """Refused before anything is made, with the way to it."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})
    done = run_local("call_openly", "--runtime", "process", cwd=root)
    assert (done.code, done.stdout) == (2, "")
    assert told(done, root) == (
        "error: `leaf.call_openly` calls `root.elsewhere`, and its environment does not depend on that one's\n"
        "  why: leaf.call_openly (flow.py:22) → root.elsewhere (flow.py:17)\n"
        "  hint: add `root` to the `depends_on` of `leaf` (flow.py:5)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plan"], "missing argument 'WORKFLOW'"),
        (["runs", "-n", "0"], "invalid value for '-n'"),
        (["lock", "--check", "--update", "x"], "`--check` changes nothing"),
        (["--nonsense"], "no such option '--nonsense'"),
        (["gc", "--older-than", "soon"], "`--older-than` does not understand `soon`"),
    ],
)
def test_a_wrong_use_of_a_command(run_local: RunLocal, project: MakeProject, arguments: list[str], text: str) -> None:
    """Told like every mistake; with `--json` there is one document, too."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    done = run_local(*arguments, cwd=root)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    as_json = run_local(*arguments, "--json", cwd=root)
    if "json" not in as_json.stderr:
        assert text in as_json.document["error"]["what"]


@pytest.mark.parametrize(
    ("redirection", "code", "text"),
    [(">/dev/full", 4, "there is no room left"), (">&-", 0, ""), ("<&- >&- 2>&-", 0, ""), ("| head -c1", 0, "")],
)
def test_output_that_goes_nowhere(
    run_local: RunLocal, project: MakeProject, redirection: str, code: int, text: str
) -> None:
    """A full disk is said; closed streams and readers that leave are no errors, and nothing of ours lands elsewhere."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    run_local_path = Path(sys.executable).with_name("run-local")
    line = f"{shlex.quote(str(run_local_path))} work --help {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=root, env=run_local.variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "bug of ours" not in done.stderr


def test_a_call_of_an_undeclared_environment(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """The caller gets an error that names both, and the declaration to write."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})
    done = run_local("call_stranger", "--runtime", runtime, cwd=root)
    assert (done.code, done.stdout) == (1, "")
    error = done.stderr[done.stderr.index("error: ") :]
    assert "`leaf.call_stranger` may not call `root.elsewhere`" in error
    assert "environment `leaf` does not depend on `root`" in error
    assert "depends_on=[…]" in error
    assert "executor/" not in error


def test_a_home_that_cannot_be_written(run_local: RunLocal, project: MakeProject, tmp_path: Path) -> None:
    """Exit code 4, and the variable to set. (A file is in its place: root may write to any folder.)"""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})
    (tmp_path / "file").touch()
    done = run_local("call_stranger", cwd=root, env={"RUN_LOCAL_HOME": str(tmp_path / "file" / "home")})
    assert (done.code, done.stdout) == (4, "")
    assert told(done, root).replace(str(tmp_path), "TMP") == (
        "error: `TMP/file/home` cannot be used\n"
        "  why: Not a directory: TMP/file/home\n"
        "  hint: set RUN_LOCAL_HOME to a folder that you can write to\n"
    )
