"""A past run can be made again from its record, whatever became of the project meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.data.records import RunView, read_run
from executor.data.store import Store, open_value, read_value
from executor.errors import UsageError
from executor.restore import restore
from executor.runs import Request, run_workflow
from tests.harness import MakeProject, RunLocal

FLOW = """
    import executor

    leaf = executor.TaskEnvironment("leaf", image=executor.CondaSpec(dependencies=["python"]))
    root = executor.TaskEnvironment("root", depends_on=[leaf], extends=[leaf])


    @leaf.task
    def said() -> str:
        return "as it was"


    @root.task
    def flow(n: int) -> list[str]:
        return [said()] * n
"""


def test_a_run_is_restored_after_its_project_changed(run_local: RunLocal, project: MakeProject) -> None:
    """The same source and the same locks, also of specifications that are in Python and united: the same result."""
    root = project({"flow.py": FLOW}, {"root": ["python"]})
    first = run_local("flow", "--n", "2", "--runtime", "process", "--json", cwd=root).document
    (root / "flow.py").write_text("nothing of it is left\n")
    (root / "envs" / "root" / "environment.yml").write_text("nor of this\n")
    before = read_run(run_local.home, first["run"])
    again = _again(run_local.home, before)
    assert again.status == "succeeded"
    assert again.root_call
    assert again.root_call.preview == {"json": ["as it was"] * 2}
    assert again.snapshot == before.snapshot
    assert [made["key"] for made in again.environments.values()] == [
        made["key"] for made in before.environments.values()
    ]


def test_what_is_gone_is_named(run_local: RunLocal, project: MakeProject) -> None:
    """A run whose source was removed cannot be made again, and that is said."""
    root = project({"flow.py": FLOW}, {"root": ["python"]})
    document = run_local("flow", "--n", "1", "--runtime", "process", "--json", cwd=root).document
    view = read_run(run_local.home, document["run"])
    view.snapshot = "0" * 32
    with pytest.raises(UsageError, match="the copy of its source is gone"):
        restore(view, run_local.home, Store(run_local.home, run_local.home / "tmp"))


def _again(home: Path, view: RunView) -> RunView:
    store = Store(home, home / "tmp")
    made = restore(view, home, store)
    assert view.root_call
    assert view.root_call.inputs
    request = Request(
        manifest=made.manifest,
        task=made.manifest.tasks[view.workflow],
        inputs=open_value(store, read_value(view.root_call.inputs)),
        runtime="process",
        home=home,
        locks=made.locks,
        fresh=True,
    )
    return run_workflow(request, lambda _: None, lambda *_: None)
