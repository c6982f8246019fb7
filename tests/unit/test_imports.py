"""What the source of a project shows of its imports, and what is said where an environment does without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from executor.environments.provided import Provided
from executor.imports import Import, Project
from executor.manifest import EnvironmentEntry, Manifest, Shape, TaskEntry
from executor.missing import Report, check_imports

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=1, gpus=0, gpu_model="", shm_bytes=None)


def write(root: Path, files: Mapping[str, str]) -> None:
    """Source files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))


def outside(root: Path, files: Mapping[str, str], first: str = "flow.py") -> list[Import]:
    """What a file imports from outside, it and all that it leads to."""
    write(root, files)
    return list(Project(str(root), ["."], set()).imports_of([first]))


def needs(root: Path, files: Mapping[str, str], tasks: frozenset[tuple[str, str]] = frozenset()) -> dict[str, str]:
    """What the function `work` of `flow.py` needs, and where."""
    write(root, files)
    found = Project(str(root), ["."], tasks).needs_of("flow.py", "work")
    return {module: use.at + (" (import)" if use.imported else "") for module, use in found.items()}


def test_an_import_is_told_with_its_line_and_the_way_to_it(tmp_path: Path) -> None:
    """Through packages and relative imports, the shortest way; Python's modules and the project's own are none."""
    found = outside(
        tmp_path,
        {
            "flow.py": "import os\nfrom executor import Resources\nfrom lib import middle\nimport tomllib\n",
            "lib/__init__.py": "",
            "lib/middle.py": "from . import far\nfrom .deep.bottom import x\n",
            "lib/far.py": "import numpy as np, torch.nn\n",
            "lib/deep/bottom.py": "from ..far import np\n\n\nfrom scipy import stats\n",
        },
    )
    assert found == [
        Import(module="numpy", at="lib/far.py:1", way=("lib/middle.py:1", "flow.py:3")),
        Import(module="torch", at="lib/far.py:1", way=("lib/middle.py:1", "flow.py:3")),
        Import(module="scipy", at="lib/deep/bottom.py:4", way=("lib/middle.py:2", "flow.py:3")),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import numpy\nexcept ImportError:\n    numpy = None\n",
        "import contextlib\nwith contextlib.suppress(ModuleNotFoundError):\n    import numpy\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n",
        "import typing\nif typing.TYPE_CHECKING:\n    import numpy\n",
        "def f():\n    import numpy\n",
        "try:\n    import other\nexcept Exception:\n    pass\n",
        "import beside\n",
        "from . import nothing\n",
        "import broken\n",
    ],
)
def test_what_is_guarded_or_does_not_run_is_no_import(tmp_path: Path, source: str) -> None:
    """Nor is what a function imports, what leads through a guarded import, or a file that cannot be read."""
    files = {"other.py": "import numpy\n", "beside/thing.py": "", "broken.py": "import numpy\n(", "flow.py": source}
    assert not outside(tmp_path, files)


def test_the_other_branch_of_a_guard_is_imported(tmp_path: Path) -> None:
    """`else` of `if TYPE_CHECKING` runs, and so does what stands in a handler."""
    source = """
        try:
            import numpy
        except ImportError:
            import tinynumpy
        if TYPE_CHECKING:
            import one
        else:
            import other
    """
    assert [each.module for each in outside(tmp_path, {"flow.py": source})] == ["tinynumpy", "other"]


def test_what_lies_in_an_environment_below_the_project_is_not_read(tmp_path: Path) -> None:
    """A virtual environment among the sources is no source."""
    files = {"flow.py": "import venv_of_mine.thing\n", "venv_of_mine/thing.py": "import numpy\n"}
    write(tmp_path, {"venv_of_mine/pyvenv.cfg": ""})
    assert not outside(tmp_path, files)


def test_a_function_needs_what_it_and_the_functions_that_it_calls_use(tmp_path: Path) -> None:
    """Through the project's modules, with the line of the first use."""
    files = {
        "flow.py": """
            import numpy as np
            import unused
            from lib import helpers
            from lib.helpers import second as other, model

            def work(x: np.ndarray = np.zeros(3)) -> np.ndarray:
                y: np.ndarray = x
                import late.part
                helpers.first()
                other()
                return model.fit(y)
        """,
        "lib/__init__.py": "",
        "lib/helpers.py": """
            import torch
            from scipy import stats
            from sklearn import model

            def first():
                return torch.zeros(3)

            def second():
                return third() + 1

            def third():
                return [stats.norm(each) for each in range(3)]
        """,
    }
    assert needs(tmp_path, files) == {
        "late": "flow.py:8 (import)",
        "sklearn": "flow.py:11",
        "torch": "lib/helpers.py:6",
        "scipy": "lib/helpers.py:12",
    }


@pytest.mark.parametrize(
    "body",
    [
        "return child(1)",
        "return child.aio(1)",
        "return [np, child]",
        "np = child(1)\n    return np.mean()",
        "try:\n        return np.mean()\n    except Exception:\n        return 0",
        "try:\n        import numpy\n    except ImportError:\n        return 0",
        "def inner(np):\n        return np.mean()\n    return inner",
        "return twice.mean()",
        "return guarded.mean()",
        "return method().mean",
    ],
)
def test_in_doubt_a_function_needs_nothing(tmp_path: Path, body: str) -> None:
    """Tasks run elsewhere; what is handed on, shadowed, guarded or bound twice is not used for sure."""
    source = """
        import numpy as np
        import one as twice
        import other as twice
        try:
            import third as guarded
        except ImportError:
            guarded = None

        def child(x):
            return np.mean(x)

        def method():
            return work

        def work():
            BODY
    """
    files = {"flow.py": dedent(source).replace("BODY", body)}
    assert not needs(tmp_path, files, frozenset({("flow.py", "child")}))


def task(name: str, file: str, calls: tuple[str, ...] = ()) -> TaskEntry:
    """A task as its description has it."""
    environment, _, function = name.partition(".")
    module = file.removesuffix(".py").replace("/", ".")
    return TaskEntry(
        name=name,
        environment=environment,
        module=module,
        qualname=function,
        file=file,
        line=1,
        doc="",
        parameters=(),
        retries=0,
        timeout_s=None,
        calls=dict.fromkeys(calls, "a way"),
    )


def project(root: Path, *tasks: TaskEntry) -> Manifest:
    """A project whose environments depend on each other as their tasks call."""
    environments = {each.environment: ("flow.py", each.line) for each in tasks}
    return Manifest(
        root=str(root),
        import_roots=(".",),
        environments={
            name: EnvironmentEntry(
                name=name, image=None, depends_on=(), extends=(), shape=SHAPE, env_vars={}, file=file, line=line
            )
            for name, (file, line) in environments.items()
        },
        tasks={each.name: each for each in tasks},
    )


SOURCES = {
    "flow.py": """
        from steps import fold
        from tools import look

        def main():
            return fold()

        def check():
            return look()
    """,
    "steps.py": """
        import numpy
        import torch

        def fold():
            return numpy.zeros(3)
    """,
    "tools.py": """
        import pandas

        def look():
            return pandas.DataFrame()
    """,
}
FULL = Provided(modules=frozenset({"numpy", "torch", "pandas"}))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A parent with two tasks, one of which calls the child's."""
    write(tmp_path, SOURCES)
    return project(
        tmp_path,
        task("child.fold", "steps.py"),
        task("parent.main", "flow.py", ("child.fold",)),
        task("parent.check", "flow.py"),
    )


def test_a_parent_does_without_the_modules_of_its_children(manifest: Manifest) -> None:
    """A note: the import line, how it is come to, and the call that makes it necessary; nothing of what is there."""
    (report,) = check_imports(manifest, "parent.main", {"child": FULL, "parent": Provided()})
    assert (report.environment, report.judged_by, report.warnings, report.unknown) == ("parent", "files", [], ())
    assert {each.module: str(each.places[0]) for each in report.missing} == {
        "numpy": "steps.py:1, imported by flow.py:1 for the call of `child.fold`",
        "pandas": "tools.py:1, imported by flow.py:2",
        "torch": "steps.py:2, imported by flow.py:1 for the call of `child.fold`",
    }
    assert list(report.tell())[:2] == [
        ("imports", "does without numpy, pandas, torch"),
        ("import", "`numpy` is imported at steps.py:1, imported by flow.py:1 for the call of `child.fold`"),
    ]


def test_a_task_that_needs_what_is_not_there_is_warned_of(manifest: Manifest) -> None:
    """It says where, and the ways out; a task that is not called is not spoken of."""
    (report,) = check_imports(manifest, "parent.check", {"child": FULL, "parent": Provided()})
    assert report.warnings == [
        (
            "`parent.check` fails where it uses `pandas`, at tools.py:4 (imported at tools.py:1, imported by flow.py:2):"
            " environment `parent` does not hold it",
            "add the package of `pandas` to envs/parent/environment.yml, or declare `parent` with `extends=[…]` of `child`,"
            " which holds it, or leave this to a task of `child`: its value can be passed on unopened",
        )
    ]
    steps = [step for step, _ in report.tell()]
    assert steps == ["imports", "import", "import", "warning", "import"]


def test_what_is_there_is_not_spoken_of(manifest: Manifest) -> None:
    """No report where nothing is missing."""
    assert check_imports(manifest, "parent.main", {"child": FULL, "parent": FULL}) == []


def test_what_cannot_be_known_yet_is_said_to_be_so(manifest: Manifest) -> None:
    """Without a lock, packages that others may bring are neither there nor missing."""
    unlocked = Provided(named=("python", "torch"), whole=False)
    (report,) = check_imports(manifest, "parent.main", {"child": FULL, "parent": unlocked})
    assert (report.missing, report.unknown, report.judged_by) == ((), ("numpy", "pandas"), "specification")
    assert list(report.tell()) == []


def test_in_one_file_the_call_is_that_of_the_task_that_needs_the_module(tmp_path: Path) -> None:
    """Where parent and child share a file, the import is made necessary by the task that uses it."""
    source = "import numpy\n\ndef fold():\n    return numpy.zeros(3)\n\ndef main():\n    return fold()\n"
    write(tmp_path, {"flow.py": source})
    shared = project(tmp_path, task("child.fold", "flow.py"), task("parent.main", "flow.py", ("child.fold",)))
    reports: list[Report] = check_imports(shared, "parent.main", {"child": FULL, "parent": Provided()})
    assert [str(place) for each in reports[0].missing for place in each.places] == [
        "flow.py:1 for the call of `child.fold`"
    ]
