"""From the name of a workflow to its manifest: what is found, what is refused, and what user code may do meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.describe import describe, find_root
from executor.errors import ProjectError, UsageError
from executor.manifest import Manifest, TaskEntry
from tests.harness import ROOT, MakeProject

#: The multi-environment example of Flyte's documentation, with `executor` for `flyte`.
DOCUMENTED = """
    import executor as flyte

    preprocessing_env = flyte.TaskEnvironment(name="preprocessing")
    alphafold_env = flyte.TaskEnvironment(name="alphafold", depends_on=[preprocessing_env])
    viz_env = flyte.TaskEnvironment(name="visualization", depends_on=[alphafold_env])

    @preprocessing_env.task
    def preprocess_data(raw):
        return raw.strip()

    @alphafold_env.task
    def run_alphafold(data):
        return f"structure of {data}"

    @viz_env.task
    def visualize_results(structure):
        return f"picture of {structure}"

    @viz_env.task
    def alphafold_workflow(sequence_data):
        return visualize_results(run_alphafold(preprocess_data(sequence_data)))
"""

ONE_TASK = """
    from executor import TaskEnvironment

    env = TaskEnvironment("env")

    @env.task
    def work(x: int = 1) -> int:
        return x
"""

Describe = Callable[..., tuple[Manifest, TaskEntry]]


@pytest.fixture
def described(project: MakeProject) -> Describe:
    """Describes a workflow of a project that consists of one file."""

    def describe_one(text: str, workflow: str = "work", patience_s: float = 60) -> tuple[Manifest, TaskEntry]:
        return describe(workflow, project({"flow.py": text}, {"env": ["python"]}), patience_s)

    return describe_one


def test_the_documented_example_is_described_as_it_is_written(described: Describe) -> None:
    """Three chained environments, tasks without types, and what the root call can reach, dependencies first."""
    manifest, task = described(DOCUMENTED, "alphafold_workflow")
    assert task.name == "visualization.alphafold_workflow"
    assert manifest.reachable(task.environment) == ["preprocessing", "alphafold", "visualization"]
    assert [(each.name, each.type, each.required) for each in task.parameters] == [
        ("sequence_data", {"kind": "any", "text": ""}, True)
    ]
    assert manifest.tasks["alphafold.run_alphafold"].module == "flow"
    assert manifest.missing == {}


def test_the_demo_is_described_without_its_packages() -> None:
    """What its modules import is stood in for and reported with the place; the host needs none of it."""
    manifest, task = describe("alphafold_workflow", ROOT)
    assert (task.module, task.qualname) == ("alphafold_demo.workflow", "alphafold_workflow")
    assert manifest.import_roots == (".",)
    assert manifest.reachable(task.environment)[-1] == "orchestrator"
    assert re.fullmatch(r"alphafold_demo/prediction\.py:\d+", manifest.missing["flash_abb"][0])
    default = next(each for each in task.parameters if each.name == "sequence_data")
    assert (default.type["kind"], default.required) == ("path", False)
    assert default.default_text == "alphafold_demo/data/ede1-c10.fasta"


def test_all_that_a_declaration_says_is_in_the_manifest(described: Describe) -> None:
    """Resources in plain numbers, variables, retries, time limit, defaults, the docstring and the places."""
    manifest, task = described(
        '''
        from executor import Resources, TaskEnvironment

        base = TaskEnvironment("base")
        env = TaskEnvironment(
            "env", image="specs/env.yml", extends=[base], env_vars={"A": "1"}, resources=Resources(cpu=2, memory="1Gi")
        )

        class Odd:
            def __repr__(self):
                return "<odd>"

        @env.task(retries=2, timeout=30)
        async def work(n: int, flag: bool = True, scores: list[float] = [1.5], odd=Odd(), note=None):
            """Do it."""
        '''
    )
    environment = manifest.environments["env"]
    assert (environment.image, environment.extends, environment.env_vars) == ("specs/env.yml", ("base",), {"A": "1"})
    assert (environment.shape.cpus, environment.shape.memory_limit_bytes) == (2, 2**30)
    assert (environment.file, environment.line) == ("flow.py", 4)
    assert (task.retries, task.timeout_s, task.doc, task.file, task.line) == (2, 30, "Do it.", "flow.py", 12)
    assert [(each.name, each.required, each.default, each.default_text) for each in task.parameters] == [
        ("n", True, None, ""),
        ("flag", False, True, ""),
        ("scores", False, [1.5], ""),
        ("odd", False, None, "<odd>"),
        ("note", False, None, ""),
    ]


def test_calls_and_specifications_in_python_are_in_the_manifest(described: Describe) -> None:
    """Both are checked without importing the workflow again."""
    manifest, task = described(
        """
        from executor import CondaSpec, TaskEnvironment

        far = TaskEnvironment("far", image="specs/far.yml")
        env = TaskEnvironment("env", image=CondaSpec(["python >=3.10"], apt=["hello"]))

        @far.task
        def predict(): ...

        def helper():
            return predict()

        @env.task
        def work():
            return helper()
        """
    )
    assert (manifest.environments["far"].image, manifest.environments["far"].spec) == ("specs/far.yml", None)
    inline = manifest.environments["env"].spec
    assert inline is not None
    assert (inline["dependencies"], inline["apt"]) == (["python >=3.10"], ["hello"])
    assert task.calls == {"far.predict": "env.work (flow.py:12) → helper (flow.py:9)"}
    with pytest.raises(ProjectError, match=r"`env\.work` calls `far\.predict`") as caught:
        manifest.check_calls(task.name)
    assert caught.value.hint == "add `far` to the `depends_on` of `env` (flow.py:4)"


def test_annotations_that_cannot_be_resolved_are_any_with_their_text(described: Describe) -> None:
    """A name that is imported for type checkers only, or that a missing package would have, is no error."""
    _, task = described(
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING, Optional
        import nowhere as nw
        from executor import TaskEnvironment

        if TYPE_CHECKING:
            from elsewhere import Thing

        env = TaskEnvironment("env")

        @env.task
        def work(a: Thing, b: nw.Array | None, c: Optional[int], d: list[nw.Array], *, e: "float"): ...
        """
    )
    assert [each.type["text"] for each in task.parameters[:2]] == ["Thing", "nowhere.Array | None"]
    assert [each.type["kind"] for each in task.parameters] == ["any", "any", "optional", "list", "float"]


def test_a_workflow_can_be_named_in_four_ways(project: MakeProject) -> None:
    """By its name, with its environment, with its module, with its file from where one stands."""
    root = project(
        {"src/pkg/__init__.py": "", "src/pkg/deep/__init__.py": "", "src/pkg/deep/flow.py": ONE_TASK}, {"env": []}
    )
    names = [
        ("work", root),
        ("env.work", root),
        ("pkg.deep.flow:work", root),
        ("deep/flow.py:env.work", root / "src/pkg"),
    ]
    for name, start in names:
        manifest, task = describe(name, start)
        assert (task.name, task.module, task.file) == ("env.work", "pkg.deep.flow", "src/pkg/deep/flow.py")
        assert (manifest.root, manifest.import_roots) == (str(root), ("src", "."))


def test_a_script_finds_its_neighbours_and_the_root(project: MakeProject) -> None:
    """The folder of a plain script and the project's root are on sys.path, as `python script.py` has it."""
    text = "import near, far\n" + "\n".join(line[4:] for line in ONE_TASK.splitlines())
    root = project({"scripts/my-flow.py": text, "scripts/near.py": "", "far.py": ""}, {"env": []})
    manifest, task = describe("work", root)
    assert (task.module, manifest.import_roots, manifest.missing) == ("my-flow", ("scripts", "."), {})


@pytest.mark.parametrize(
    ("name", "what", "rest"),
    [
        (
            "wrok",
            "there is no command and no task `wrok`",
            ["did you mean `work`?", "there are `other`, `twice`, `work`"],
        ),
        ("twice", "`twice` is the name of several tasks", ["`a.py:twice`\n", "`b.py:twice`\n"]),
        ("a.py:nothing", "`a.py` declares no task `nothing`", ["`env-a.twice`"]),
        ("env-b.work", "`flow.py` declares no task `env-b.work`", ["did you mean `env.work`"]),
        ("c.py:work", "there is no file `c.py`", []),
        ("a.b:work", "there is no module `a.b`", []),
    ],
)
def test_a_wrong_name_is_told_with_what_there_is(project: MakeProject, name: str, what: str, rest: list[str]) -> None:
    """Near names are offered; where a name means several tasks, they are listed as they can be typed."""
    twice = ONE_TASK.replace("work", "twice")
    files = {"flow.py": ONE_TASK, "a.py": twice.replace('"env"', '"env-a"'), "b.py": twice.replace('"env"', '"env-b"')}
    files |= {"tests/x.py": ONE_TASK, "test_y.py": ONE_TASK, "more.py": "@x.task(retries=1)\nasync def other(): ..."}
    with pytest.raises(UsageError) as caught:
        describe(name, project(files, {"env": []}))
    assert caught.value.what == what
    text = str(caught.value).replace("\n       ", "\n") + "\n"
    assert all(part in text for part in rest), text


def test_the_environment_tells_tasks_of_one_name_apart(project: MakeProject) -> None:
    """`env.task` names one of several, without importing the others."""
    other = "raise SystemExit\n" + "\n".join(line[4:] for line in ONE_TASK.splitlines())
    root = project({"a.py": ONE_TASK.replace('"env"', 'name="right"'), "b.py": other}, {"env": []})
    assert describe("right.work", root)[1].file == "a.py"


def test_tests_count_where_nothing_else_fits(project: MakeProject) -> None:
    """A workflow of a test can be run; it does not stand in the way of the real one."""
    root = project({"tests/flow.py": ONE_TASK}, {"env": []})
    assert describe("work", root)[1].file == "tests/flow.py"


def test_the_scan_passes_over_what_is_not_source(project: MakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, hidden, built and broken files do not make a name ambiguous; nor do snapshots of ours."""
    elsewhere = ["venv/x.py", ".git/x.py", "conda/x.py", "node_modules/x.py", "build/x.py", "home/snapshots/1/flow.py"]
    files = dict.fromkeys(["flow.py", *elsewhere, "lib/site-packages/x.py"], ONE_TASK)
    files |= {"venv/pyvenv.cfg": "", "conda/conda-meta/history": "", "broken.py": "x.task (", "nul.py": "x.task\0"}
    root = project(files, {"env": []})
    (root / "latin.py").write_bytes("# caf\xe9 .task".encode("latin-1"))
    monkeypatch.setenv("RUN_LOCAL_HOME", str(root / "home"))
    assert describe("work", root)[1].file == "flow.py"


def test_a_syntax_error_in_the_file_that_is_asked_for_is_shown(described: Describe) -> None:
    """The file cannot be scanned, but it is the one; Python's own words say where it is wrong."""
    with pytest.raises(ProjectError) as caught:
        described(ONE_TASK + "    x = = 1\n")
    assert caught.value.what == "`flow.py` cannot be imported"
    assert caught.value.why.startswith('  File "flow.py", line 8\n    x = = 1\n')


def test_an_exception_is_shown_with_the_users_frames_only(project: MakeProject) -> None:
    """As Python prints it, files from the project's root, chained exceptions too; nothing of run-local."""
    root = project(
        {
            "pkg/__init__.py": "",
            "pkg/flow.py": "from pkg import bad\n@x.task\ndef work(): ...",
            "pkg/bad.py": 'try:\n    {}["k"]\nexcept KeyError as exc:\n    raise ValueError("no") from exc\n',
        },
        {"env": []},
    )
    with pytest.raises(ProjectError) as caught:
        describe("work", root)
    assert caught.value.why == (
        "Traceback (most recent call last):\n"
        '  File "pkg/bad.py", line 2, in <module>\n    {}["k"]\n'
        "KeyError: 'k'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        '  File "pkg/flow.py", line 1, in <module>\n    from pkg import bad\n'
        '  File "pkg/bad.py", line 4, in <module>\n    raise ValueError("no") from exc\n'
        "ValueError: no"
    )


@pytest.mark.parametrize(
    ("line", "what", "rest"),
    [
        ("import sys; sys.exit(3)", "`flow.py` ends Python when it is imported", '`if __name__ == "__main__":`'),
        ("import os; os._exit(3)", "`flow.py` cannot be imported", "the process that imported it ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "`flow.py` cannot be imported", "was killed by SIGKILL"),
        ("work(2)", "task `env.work` is called while its workflow is imported", "flow.py:8: work(2)"),
        ("import torch; int(torch.pi)", "`torch` is not in the process that reads the workflow", "`torch.pi`"),
        ("TaskEnvironment('Not OK')", "`Not OK` cannot name an environment", "flow.py:8: TaskEnvironment('Not OK')"),
        ("TaskEnvironment('env')", "environment `env` is declared twice", "at flow.py:3 and at flow.py:8"),
        ("TaskEnvironment('b', depends_on=[3])", "environment `b` (flow.py:8): `3` is no environment", ""),
        ("TaskEnvironment('b', env_vars={'A': 1})", "environment `b` (flow.py:8): `env_vars` must be text", "'A' is 1"),
        (
            "import executor; TaskEnvironment('b', image=executor.CondaSpec('python'))",
            "environment `b` (flow.py:8): its `CondaSpec` is wrong",
            "`dependencies` must be a list of texts, and is 'python'",
        ),
        ("TaskEnvironment('b', image=3)", "environment `b` (flow.py:8): `image` must be a path or a `CondaSpec`", ""),
        ("env.resources = Resources(memory='x')", "environment `env` (flow.py:3): `x` is not an amount of memory", ""),
        ("f = env.task(lambda: 0)", "task `env.<lambda>` cannot be found by its name", "flow.py:8"),
        ("work = print", "task `env.work` cannot be found by its name", "flow.py:5"),
        ("import definitely.not_there.json", "", ""),
        ("from near import nonexistent", "`flow.py` cannot be imported", "cannot import name 'nonexistent'"),
        ("import near.nonexistent", "`flow.py` cannot be imported", "No module named 'near.nonexistent'"),
        (
            "import importlib; importlib.import_module('nowhere')",
            "`flow.py` cannot be imported",
            "No module named 'nowhere'",
        ),
    ],
)
def test_a_workflow_that_cannot_be_read_is_a_project_error(
    project: MakeProject, line: str, what: str, rest: str
) -> None:
    """What is wrong, and where in the user's code; never a traceback of ours."""
    text = ONE_TASK.replace("import TaskEnv", "import Resources, TaskEnv") + f"    {line}\n"
    root = project({"flow.py": text, "near.py": ""}, {"env": []})
    if not what:
        assert describe("work", root)[0].missing == {"definitely": ("flow.py:8",)}
        return
    with pytest.raises(ProjectError) as caught:
        describe("work", root)
    assert caught.value.what == what
    assert rest in f"{caught.value.why}\n{caught.value.hint}"
    assert "executor/" not in caught.value.why


def test_what_user_code_does_while_it_is_imported_does_no_harm(
    described: Describe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints, closes stdout, moves away, leaves a thread and a process behind, catches every exit: we get our answer."""
    _, task = described(
        f"""
        import atexit, os, subprocess, sys, threading, time
        print("{{}}" * 100_000)
        os.write(1, b"noise")
        sys.stdout = open(os.devnull, "w")
        os.chdir("/")
        threading.Thread(target=time.sleep, args=(600,)).start()
        atexit.register(time.sleep, 600)
        left = subprocess.Popen(["sleep", "600"])
        open({str(tmp_path / "pid")!r}, "w").write(str(left.pid))
        """
        + ONE_TASK.replace("\n    ", "\n        ")
    )
    assert task.name == "env.work"
    assert capfd.readouterr() == ("", "")
    with contextlib.suppress(ProcessLookupError):
        left = os.pidfd_open(int((tmp_path / "pid").read_text()))
        assert select.select([left], [], [], 5)[0], "a process is left"
        os.close(left)


def test_what_user_code_prints_is_shown_where_it_fails(described: Describe, capfd: pytest.CaptureFixture[str]) -> None:
    """It may be what explains the failure."""
    with pytest.raises(ProjectError):
        described(ONE_TASK + '    print("reading config"); 1 / 0\n')
    assert capfd.readouterr() == ("", "reading config\n")


def test_an_import_that_hangs_is_given_up(described: Describe) -> None:
    """With the line of the user's that it hung at."""
    with pytest.raises(ProjectError) as caught:
        described(ONE_TASK + "    import threading; threading.Event().wait()\n", patience_s=0.3)
    assert caught.value.what == "`flow.py` is not imported after 0.3 s"
    assert 'File "flow.py", line 8, in <module>\n    import threading; threading.Event().wait()' in caught.value.why
    assert "TooSlow" not in caught.value.why


def test_run_locals_own_package_comes_first(project: MakeProject) -> None:
    """A folder `executor` of the user's, or one in the working directory, does not take its place."""
    root = project({"executor/__init__.py": "raise SystemError", "json.py": "", "flow.py": ONE_TASK}, {"env": []})
    assert describe("work", root)[1].name == "env.work"


def test_nothing_is_written_into_the_project(project: MakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Describing leaves no byte code beside the user's files."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    root = project({"flow.py": ONE_TASK}, {"env": []})
    before = sorted(root.rglob("*"))
    describe("work", root)
    assert sorted(root.rglob("*")) == before


def test_parameters_without_names_are_marked(described: Describe) -> None:
    """Other tasks may call such a task; the command line cannot, and says so from this."""
    _, task = described(ONE_TASK.replace("x: int = 1", "x, /, *y, **z"))
    assert [(each.name, each.required, bool(each.problem)) for each in task.parameters] == [
        ("x", True, True),
        ("y", False, True),
        ("z", False, True),
    ]


def test_the_root_is_where_the_environments_are(tmp_path: Path) -> None:
    """The nearest `envs/` upward; without one, the nearest set-up; without either, the folder itself."""
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    assert find_root(inner) == inner
    (tmp_path / "a" / "b" / "setup.cfg").touch()
    assert find_root(inner) == tmp_path / "a" / "b"
    (tmp_path / "a" / "envs").mkdir()
    assert find_root(inner) == tmp_path / "a"
