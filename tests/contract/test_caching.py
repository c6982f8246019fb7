"""What need not run again: results by the keys of their calls, and runs that are gone on with; on every runtime."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Finished, MakeProject, RunLocal

FLOW = """
    import pathlib
    import time

    import executor

    import helping

    SALT = "{salt}"
    helping.SALT = SALT  # so that every task reaches it
    leaf = executor.TaskEnvironment("leaf", cache="auto")
    root = executor.TaskEnvironment("root", depends_on=[leaf])


    @leaf.task
    def grow(n: int, names: object = None) -> list[int]:
        print("growing", n, SALT)
        time.sleep(0.1)
        return helping.grown(n)


    @leaf.task
    def fails(n: int) -> int:
        raise ValueError(n)


    @leaf.task
    def written(text: str) -> executor.File:
        path = pathlib.Path("out.txt")
        path.write_text(text * 100_000)
        return executor.File(path)


    @leaf.task
    def length(file: executor.File) -> int:
        return len(file.path.read_text())


    @root.task
    def many(n: int, fail: bool = False) -> list[list[int]]:
        found = list(executor.map(grow, range(n), [{{"a", "b", "c", "d"}}] * n))
        if fail:
            fails(n)
        return found


    @leaf.task
    def weigh(thing: object) -> int:
        return thing.weight() if SALT else 0


    @root.task
    def weighed() -> int:
        return weigh(helping.Thing())


    @root.task
    def twins() -> list[list[int]]:
        return list(executor.map(grow, [7, 7, 7, 7]))


    @root.task
    def files() -> int:
        return length(written("text"))


    @root.task
    def overridden(behavior: str) -> list[int]:
        return grow.override(cache=behavior)(5)


    @root.task
    def with_variable(value: str) -> list[int]:
        return grow.override(env_vars={{"THE_VARIABLE": value}})(6)


    @root.task
    def tolerant(n: int) -> str:
        try:
            fails(n)
        except executor.TaskError as error:
            return error.code
        return ""
"""
HELPING = """
    def grown(n: int) -> list[int]:
        return [n] * 3


    def unused() -> None:
        pass


    class Thing:
        def weight(self) -> int:
            return 1
"""


@pytest.fixture
def flow(project: MakeProject) -> Path:
    """A project of its own: nothing that another test has computed is of use here."""
    files = {"flow.py": FLOW.format(salt=uuid.uuid4().hex), "helping.py": HELPING}
    return project(files, {"leaf": ["python >=3.10"], "root": ["python >=3.10"]})


@pytest.fixture
def run(run_local: RunLocal, flow: Path, runtime: str) -> Any:
    def call(*arguments: str) -> Finished:
        done = run_local(*arguments, "--runtime", runtime, "--json", cwd=flow)
        assert done.stdout, done.stderr
        return done

    return call


def statuses(done: Finished, task: str = "leaf.grow") -> list[str]:
    return sorted(call["status"] for call in done.document["calls"] if call["task"] == task)


def test_a_call_that_was_made_before_is_not_made_again(run: Any) -> None:
    """Its value is that of then, wherever it was made; a set of texts has the same bytes in each container."""
    first = run("many", "--n", "3")
    assert statuses(first) == ["succeeded"] * 3
    second = run("many", "--n", "4")
    assert second.document["result"] == [[n] * 3 for n in range(4)]
    assert statuses(second) == ["cached"] * 3 + ["succeeded"]
    origins = {json.dumps(call["origin"]) for call in second.document["calls"] if call["status"] == "cached"}
    assert len(origins) == 3
    assert all(first.document["run"] in origin for origin in origins)
    assert statuses(second, "root.many") == ["succeeded"]  # nobody asked for it to be kept


def test_what_the_task_reaches_changes_the_key_and_nothing_else(run: Any, flow: Path) -> None:
    """The function that it calls in another module does; a comment and what it does not call do not."""
    assert statuses(run("many", "--n", "1")) == ["succeeded"]
    helping = flow / "helping.py"
    helping.write_text("# a comment\n" + helping.read_text().replace("pass", "return None"))
    assert statuses(run("many", "--n", "1")) == ["cached"]
    helping.write_text(helping.read_text().replace("[n] * 3", "[n] * 2"))
    changed = run("many", "--n", "1")
    assert (statuses(changed), changed.document["result"]) == (["succeeded"], [[0, 0]])


def test_the_class_of_an_input_is_of_the_key(run: Any, flow: Path) -> None:
    """The task names it nowhere: it comes with the value, and what its methods do is what the task does."""
    assert statuses(run("weighed"), "leaf.weigh") == ["succeeded"]
    assert statuses(run("weighed"), "leaf.weigh") == ["cached"]
    helping = flow / "helping.py"
    helping.write_text(helping.read_text().replace("return 1", "return 2"))
    assert run("weighed").document["result"] == 2


def test_variables_are_of_the_key(run: Any) -> None:
    """Those that the task is called with."""
    found = [statuses(run("with_variable", "--value", value)) for value in ("1", "1", "2")]
    assert found == [["succeeded"], ["cached"], ["succeeded"]]


def test_behaviours(run: Any) -> None:
    """`disable` neither takes nor keeps; `override` runs, and keeps; `--no-cache` does that for all."""
    assert statuses(run("overridden", "--behavior", "disable")) == ["succeeded"]
    assert statuses(run("overridden", "--behavior", "auto")) == ["succeeded"]
    assert statuses(run("overridden", "--behavior", "override")) == ["succeeded"]
    assert statuses(run("overridden", "--behavior", "auto")) == ["cached"]
    assert statuses(run("overridden", "--behavior", "auto", "--no-cache")) == ["succeeded"]


def test_a_behaviour_that_there_is_not(run: Any) -> None:
    """It is told to the caller, with what there is."""
    refused = run("overridden", "--behavior", "always")
    assert refused.code == 1
    assert "`override`" in refused.document["error"]["hint"] + refused.document["error"]["message"]


def test_a_failure_is_not_kept(run: Any) -> None:
    """It may have been the machine's fault."""
    for _ in range(2):
        assert statuses(run("tolerant", "--n", "1"), "leaf.fails") == ["failed"]


def test_equal_calls_at_one_time_are_made_once(run: Any) -> None:
    """Those that come second wait for the first."""
    done = run("twins")
    assert done.document["result"] == [[7, 7, 7]] * 4
    assert statuses(done) == ["cached"] * 3 + ["succeeded"]


def test_two_runs_at_one_time_make_it_once(run_local: RunLocal, flow: Path, runtime: str) -> None:
    """The second run waits for what the first computes."""
    flow.joinpath("flow.py").write_text(flow.joinpath("flow.py").read_text().replace("sleep(0.1)", "sleep(2)"))
    assert run_local("build", "--runtime", runtime, cwd=flow).code == 0
    started = [run_local.start("many", "--n", "1", "--runtime", runtime, "--json", cwd=flow) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    found = [json.loads(stdout) for stdout, _ in told]
    each = sorted(call["status"] for doc in found for call in doc["calls"] if call["task"] == "leaf.grow")
    assert each == ["cached", "succeeded"]
    assert [doc["result"] for doc in found] == [[[0, 0, 0]]] * 2


def test_files_are_kept_and_given_by_content(run: Any) -> None:
    """A cached file goes into the next task like one that was made just now."""
    assert run("files").document["result"] == 400_000
    again = run("files")
    assert again.document["result"] == 400_000
    assert {call["task"]: call["status"] for call in again.document["calls"] if call["parent"]} == {
        "leaf.written": "cached",
        "leaf.length": "cached",
    }


@pytest.mark.parametrize("damage", ["flip", "lose", "tear"])
def test_a_result_that_is_damaged_is_computed_again(run: Any, home: Path, damage: str) -> None:
    """A flipped byte, a lost file and an entry that was torn are found, thrown out and made good."""
    first = run("files")
    made = next(call for call in first.document["calls"] if call["task"] == "leaf.written")
    for path in _content_of(home, first.document["run"], made["id"]):
        path.chmod(0o644)
        if damage == "flip":
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        elif damage == "lose":
            path.unlink()
    if damage == "tear":
        for path in home.glob("results/*/*.json"):
            if json.loads(path.read_text())["run"] == first.document["run"]:
                path.write_bytes(path.read_bytes()[:40])
    second = run("files")
    assert second.document["result"] == 400_000
    assert statuses(second, "leaf.written") == ["succeeded"]
    assert statuses(run("files"), "leaf.written") == ["cached"]


def _content_of(home: Path, run: str, call: str) -> Iterator[Path]:
    for line in (home / "runs" / run / "journal.jsonl").read_text().splitlines():
        fact = json.loads(line)
        if fact["fact"] == "CallEnded" and fact["call"] == call:
            for file in fact["value"]["files"]:
                yield home / "store/sha256" / file["sha256"][:2] / file["sha256"]


def test_resume_takes_over_what_succeeded(run: Any, run_local: RunLocal, flow: Path) -> None:
    """Also of tasks that are not cached, each call once; and code that was mended meanwhile runs."""
    text = flow.joinpath("flow.py").read_text().replace('cache="auto"', "")
    flow.joinpath("flow.py").write_text(text)
    failed = run("many", "--n", "3", "--fail")
    assert failed.code == 1
    flow.joinpath("flow.py").write_text(text.replace("raise ValueError(n)", "return n"))
    resumed = run_local("resume", failed.document["run"], "--json", cwd=flow)
    assert resumed.code == 0, resumed.stderr
    assert resumed.document["resumes"] == failed.document["run"]
    assert resumed.document["result"] == [[0] * 3, [1] * 3, [2] * 3]
    assert statuses(resumed) == ["cached"] * 3
    assert statuses(resumed, "leaf.fails") == ["succeeded"]
    assert run_local("resume", resumed.document["run"], cwd=flow).code == 2  # it is done
    assert statuses(run("many", "--n", "3")) == ["succeeded"] * 3  # another run takes nothing over


def test_a_call_is_taken_over_as_often_as_it_was_made(run: Any, run_local: RunLocal, flow: Path) -> None:
    """A task that is called four times with the same inputs may well answer four different things."""
    text = flow.joinpath("flow.py").read_text().replace('cache="auto"', "")
    text = text.replace("[7, 7, 7, 7]))", "[7, 7, 7, 7])) + fails(1)")
    flow.joinpath("flow.py").write_text(text)
    failed = run("twins")
    flow.joinpath("flow.py").write_text(text.replace("raise ValueError(n)", "return [grow(7)]"))
    resumed = run_local("resume", failed.document["run"], "--json", cwd=flow).document
    assert sorted(call["status"] for call in resumed["calls"] if call["task"] == "leaf.grow") == ["cached"] * 4 + [
        "succeeded"
    ]


def test_what_cannot_be_resumed_says_why(run: Any, run_local: RunLocal, flow: Path, home: Path) -> None:
    """A run that succeeded, one whose source is gone, one of whose inputs a byte is another; all are shown as they were."""
    done = run_local("resume", run("many", "--n", "1").document["run"], cwd=flow)
    assert (done.code, "it succeeded" in done.stderr) == (2, True)
    failed = run("many", "--n", "1", "--fail").document["run"]
    elsewhere = flow.rename(flow.with_name("elsewhere"))
    gone = run_local("resume", failed, cwd=elsewhere)
    assert gone.code == 2, gone.stderr
    assert str(flow) in gone.stderr
    for command in (("show", failed), ("logs", failed), ("report", failed)):
        assert run_local(*command, cwd=elsewhere).code == 0, command
    elsewhere.rename(flow)
    for line in (home / "runs" / failed / "journal.jsonl").read_text().splitlines():
        fact = json.loads(line)
        if fact["fact"] == "InputsCommitted" and fact["call"] == "1":
            sha256 = fact["inputs"]["sha256"]
            content = home / "store/sha256" / sha256[:2] / sha256
            content.chmod(0o600)
            content.write_bytes(bytes([content.read_bytes()[0] ^ 1]) + content.read_bytes()[1:])
    lost = run_local("resume", failed, cwd=flow)
    assert (lost.code, "the inputs of run" in lost.stderr) == (2, True), lost.stderr
    assert run_local("show", failed, cwd=flow).code == 0


def test_a_script_may_ask_for_it_too(run_local: RunLocal, flow: Path, runtime: str) -> None:
    """`executor.run` uses the same results as the command line."""
    script = f"""
import executor, flow
for _ in range(2):
    run = executor.with_options(runtime={runtime!r}).run(flow.grow, 3)
    assert run.result() == [3, 3, 3]
    print(run.calls[0].status)
"""
    variables = {**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home), "PYTHONPATH": str(flow)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=flow, env=variables, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["succeeded", "cached"], done.stderr
