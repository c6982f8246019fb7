"""What a plan and a run say of imports that an environment's packages do not provide; with real locks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import MakeProject, RunLocal

FILES = {
    "flow.py": """
        from executor import TaskEnvironment

        from steps import child, encode

        parent = TaskEnvironment("parent", depends_on=[child])


        @parent.task
        def whole(name: str = "run.local") -> str:
            return encode(name)


        @parent.task
        def wrong(name: str = "run.local") -> str:
            import idna

            return encode(idna.encode(name).decode())
    """,
    "steps.py": """
        import idna

        from executor import TaskEnvironment

        child = TaskEnvironment("child")


        @child.task
        def encode(name: str) -> str:
            return idna.encode(name).decode()
    """,
}
CHILD = "dependencies: [python >=3.10, pip, {pip: [idna==3.10]}]\n"
NOTE = """\
parent does without a module that its source imports{}:
  idna  steps.py:1, imported by flow.py:3 for the call of `child.encode`
  no task of parent is seen to use it, so nothing has to be done
  what is called by its name is not even imported: `reference_task("child.encode")`
"""
FAILURE = "`parent.wrong` fails where it imports `idna`, at flow.py:15: environment `parent` does not hold it{}"
WAYS_OUT = (
    "add the package of `idna` to envs/parent/environment.yml, or declare `parent` with `extends=[…]` of `child`, which"
    " holds it, or leave this to a task of `child`: its value can be passed on unopened"
)


@pytest.fixture
def flow(project: MakeProject) -> Path:
    """A parent that imports its child's module, and a task of it that needs what only the child has."""
    return project(FILES, {"parent": ["python >=3.10"], "child": CHILD})


def test_a_plan_says_what_a_parent_does_without(run_local: RunLocal, flow: Path, tmp_path: Path) -> None:
    """Judged by the specification before there is a lock, and by the packages once they are here."""
    fresh = {"RUN_LOCAL_HOME": str(tmp_path / "fresh")}
    first = run_local("plan", "whole", "--runtime", "process", cwd=flow, env=fresh)
    assert first.stdout.partition("\n\n")[2] == NOTE.format(" (judged by its specification, until it is locked)")
    done = run_local("whole", "--runtime", "process", cwd=flow)
    assert (done.code, done.stdout) == (0, "run.local\n")
    said = [line for line in done.stderr.splitlines() if line.startswith("  parent: does")]
    assert said == ["  parent: does without idna"]
    assert run_local("plan", "whole", "--runtime", "process", cwd=flow).stdout.partition("\n\n")[2] == NOTE.format("")


def test_a_task_that_will_fail_is_warned_of_before_it_does(run_local: RunLocal, flow: Path) -> None:
    """By the plan with the ways out, and by the run before it builds; the failure is the one that was foretold."""
    done = run_local("wrong", "--runtime", "process", "-v", cwd=flow)
    assert done.code == 1
    said = done.stderr.splitlines()
    warning = said.index(f"  parent: {FAILURE.format('')}; `run-local plan` says what can be done")
    assert said[warning + 1] == f"  parent: {WAYS_OUT}"
    assert warning < next(at for at, line in enumerate(said) if line.startswith("  parent: ready"))
    assert "MissingModule: `idna` is not in environment `parent`" in done.stderr
    plan = run_local("plan", "wrong", "--runtime", "process", cwd=flow).stdout
    assert plan.partition("\n\n")[2] == f"warning: {FAILURE.format('')}\n  hint: {WAYS_OUT}\n"
    document = run_local("plan", "wrong", "--runtime", "process", "--json", cwd=flow).document
    assert document["imports"] == [
        {
            "environment": "parent",
            "judged_by": "files",
            "missing": [
                {
                    "module": "idna",
                    "imported": [{"at": "steps.py:1", "by": ["flow.py:3"], "call": "child.encode"}],
                    "used": [{"task": "parent.wrong", "at": "flow.py:15", "imported": True}],
                    "held_by": ["child"],
                }
            ],
            "unknown": [],
            "warnings": [{"what": FAILURE.format(""), "hint": WAYS_OUT}],
        }
    ]


def test_nothing_is_said_where_nothing_is_missing(run_local: RunLocal, flow: Path) -> None:
    """A parent that holds what its children do has no note, and its run none either."""
    (flow / "envs/parent/environment.yml").write_text(CHILD)
    done = run_local("wrong", "--runtime", "process", cwd=flow)
    assert (done.code, "idna" in done.stderr) == (0, False)
    assert "\n\n" not in run_local("plan", "wrong", "--runtime", "process", cwd=flow).stdout
