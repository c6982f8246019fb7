"""Why a call ran, or did not, and what is different between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MakeProject, RunLocal

FLOW = """
    import executor

    import helping

    leaf = executor.TaskEnvironment("leaf", cache="auto", env_vars={"MODE": "fast"})
    other = executor.TaskEnvironment("other", cache="auto")
    root = executor.TaskEnvironment("root", depends_on=[leaf, other])


    @leaf.task
    def helped(n: int, salt: str) -> int:
        return helping.twice(n)


    @leaf.task
    def alone(n: int, salt: str) -> int:
        return n


    @other.task
    def elsewhere(n: int, salt: str) -> int:
        return -n


    @root.task
    def all_of_them(n: int, salt: str) -> list[int]:
        return [helped(n, salt), alone(n, salt), elsewhere(n, salt)]
"""
HELPING = """
    def twice(n):
        return 2 * n


    def unused(n):
        return n
"""
TASKS = ("leaf.helped", "leaf.alone", "other.elsewhere")


class Flow:
    """A project whose runs are explained."""

    def __init__(self, run_local: RunLocal, root: Path, runtime: str, salt: str) -> None:
        self.root, self._run_local, self._runtime, self._salt = root, run_local, runtime, salt

    def run(self, n: int = 1, *options: str) -> tuple[str, dict[str, list[str]]]:
        """Run it; its id, and the reasons of each task's call."""
        arguments = ["--n", str(n), "--salt", self._salt, "--runtime", self._runtime, "--json", *options]
        run: str = self._run_local("all_of_them", *arguments, cwd=self.root).document["run"]
        told = self._run_local("why", run, "--json", cwd=self.root).document
        return run, {each["task"]: each["reasons"] for each in told["calls"]}

    def replace(self, file: str, old: str, new: str) -> None:
        """Edit the source."""
        text = (self.root / file).read_text()
        assert old in text
        (self.root / file).write_text(text.replace(old, new))

    def __call__(self, *arguments: str) -> Any:
        """Any command; what it prints."""
        done = self._run_local(*arguments, cwd=self.root)
        assert done.code == 0, done.stderr
        return done


@pytest.fixture
def flow(run_local: RunLocal, project: MakeProject, runtime: str, tmp_path: Path) -> Flow:
    """It computes what nobody has computed before."""
    environments = {name: ["python"] for name in ("leaf", "other", "root")}
    root = project({"flow.py": FLOW, "helping.py": HELPING}, environments)
    return Flow(run_local, root, runtime, salt=str(tmp_path))


def test_what_changed_is_named_and_nothing_else_ran(flow: Flow) -> None:
    """The function that was edited, the input that is another, the package that came; and where a value was taken from."""
    first, told = flow.run()
    for task in TASKS:
        none = f"the records tell of no earlier call of `{task}`"
        assert told[task] == [none] or any(each.startswith("input `salt` ") for each in told[task])

    _, told = flow.run()
    for number, task in enumerate(TASKS, start=1):
        [reason] = told[task]
        assert f"in the cache: call 1.{number} of run {first} with the same key computed it on 20" in reason
    assert told["root.all_of_them"] == [
        '`root.all_of_them` is not cached: `cache="auto"` would be',
        "nothing is different",
    ]

    flow.replace("helping.py", "2 * n", "n + n + 0")
    flow.replace("helping.py", "return n\n", "return n + 1\n")
    edited, told = flow.run()
    assert told["leaf.helped"] == ["function `twice` in helping.py changed"]
    assert all(f"run {first}" in told[task][0] for task in TASKS[1:])

    _, told = flow.run(2)
    assert all(told[task] == ["input `n` 1 → 2"] for task in TASKS)

    flow.replace("flow.py", "fast", "slow")
    _, told = flow.run(2)
    assert told["leaf.alone"] == ["variable `leaf: MODE` changed: fast → slow"]
    assert "with the same key" in told["other.elsewhere"][0]

    _, told = flow.run(2, "--no-cache")
    assert told["other.elsewhere"] == ["the run was started with `--no-cache`", "nothing is different"]

    compared = flow("diff", edited, "last", "--json").document
    assert [(each["call"], each["inputs"], each["outputs"]) for each in compared["calls"]] == [
        (call, "different", "different") for call in ("1", "1.1", "1.2", "1.3")
    ]
    assert "1 root.all_of_them: input `n` 1 → 2" in flow("diff", edited, "last").stdout


@pytest.mark.parametrize("runtime", ["process"])
def test_a_package_that_came_is_named(flow: Flow) -> None:
    """By its version, in the lock of which environment; calls elsewhere are hits."""
    flow.run()
    spec = flow.root / "envs" / "other" / "environment.yml"
    spec.write_text(spec.read_text() + "  - pip\n  - pip: [six]\n")
    _, told = flow.run()
    assert any(
        each.startswith("`six` 1.") and each.endswith("is new in the lock of `other`") for each in told[TASKS[2]]
    )
    assert all("with the same key" in told[task][0] for task in TASKS[:2])
    assert any("`six`" in each for each in flow("diff", *_last_two(flow), "--json").document["packages"])


def _last_two(flow: Flow) -> list[str]:
    runs = json.loads(flow("runs", "-n", "2", "--json").stdout)
    return [each["run"] for each in reversed(runs)]
