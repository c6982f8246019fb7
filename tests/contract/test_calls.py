"""What a workflow's author may rely on, on every runtime: calls, values, files, failures, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Finished, MakeProject, RunLocal

Call = Callable[..., Finished]

PYTHON = ["python >=3.10"]

FLOW = """
    import asyncio
    import os
    import pathlib
    import subprocess
    import sys
    import time

    from executor import Dir, File, Resources, TaskEnvironment, TaskError

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"), env_vars={"FLAVOUR": "leaf"})
    root_env = TaskEnvironment("root", depends_on=[leaf_env], resources=Resources(cpu=1, memory="256Mi"))


    @leaf_env.task
    def double(x: int) -> int:
        return 2 * x


    @leaf_env.task
    async def double_later(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x


    @leaf_env.task
    def look() -> dict:
        return {"flavour": os.environ.get("FLAVOUR"), "uid": os.getuid(), "pid": os.getpid(), "cwd": os.listdir(".")}


    @leaf_env.task
    def fail(how: str) -> None:
        print("about to", how)
        if how == "raise":
            raise ValueError("the task's own words")
        if how == "exit":
            os._exit(7)
        if how == "sys.exit":
            sys.exit("leaving")
        if how == "signal":
            os.kill(os.getpid(), 11)
        if how == "unpicklable":
            return (n for n in range(3))
        raise AssertionError(how)


    @leaf_env.task(timeout=0.5)
    def hang() -> None:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        time.sleep(600)


    @leaf_env.task(retries=2)
    def flaky() -> int:
        raise RuntimeError("again")


    @leaf_env.task
    def litter() -> int:
        pathlib.Path("left.txt").write_text("x")
        pathlib.Path(os.environ["TMPDIR"], "left.txt").write_text("x")
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        os.environ["LITTER"] = "yes"
        return os.getpid()


    @leaf_env.task
    def see_litter() -> list:
        return [os.listdir("."), os.listdir(os.environ["TMPDIR"]), os.environ.get("LITTER")]


    @leaf_env.task
    def write_file(text: str) -> pathlib.Path:
        made = pathlib.Path("made.txt")
        made.write_text(text)
        return made


    @leaf_env.task
    def read_file(path: pathlib.Path) -> list:
        return [path.name, path.read_text(), os.access(path, os.W_OK)]


    @leaf_env.task
    def big(n: int) -> bytearray:
        return bytearray(n)


    @root_env.task
    def all_ways(n: int = 3) -> dict:
        async def together():
            return await asyncio.gather(*(double.aio(x) for x in range(n)), double_later(10))

        looked = look()
        return {
            "one_by_one": [double(x) for x in range(n)],
            "together": asyncio.run(together()),
            "looked": looked,
            "mine": [os.environ.get("FLAVOUR"), os.getpid()],
            "file": read_file(write_file("content")),
            "big": len(big(300_000)),
        }


    @root_env.task
    def catch(how: str) -> dict:
        try:
            fail(how)
        except TaskError as error:
            return {"code": error.code, "task": error.task, "text": str(error), "traceback": error.traceback}
        return {}


    @root_env.task
    def let_fail(how: str) -> None:
        fail(how)


    @root_env.task
    def wait_for_hang() -> str:
        try:
            hang()
        except TaskError as error:
            return error.code
        return "?"


    @root_env.task
    def retry() -> None:
        flaky()


    @root_env.task
    def littered() -> list:
        litter()
        return see_litter()


    @root_env.task
    def give(text: str) -> dict:
        return {"files": [write_file(text), write_file(text + "!")], "n": 1}


    @root_env.task
    def take(path: pathlib.Path, numbers: list[int], ratio: float = 0.5, loud: bool = False, note: str = "-") -> list:
        return [read_file(path), numbers, ratio, loud, note]


    @leaf_env.task
    def make_folder(text: str) -> Dir:
        folder = Dir.new_remote("results")
        (folder.path / "deep").mkdir()
        (folder.path / "deep" / "a.txt").write_text(text)
        (folder.path / "link").symlink_to("deep/a.txt")
        return folder


    @leaf_env.task
    def look_into(folder: Dir, file: File) -> list:
        try:
            (folder.path / "new").touch()
            writable = True
        except OSError:
            writable = False
        with file.open_sync("r") as opened:
            return [folder.name, sorted(each.name for each in folder.walk_sync()), opened.read(), writable]


    @root_env.task
    def folders(given: Dir, file: File) -> dict:
        made = make_folder("made")
        return {
            "made": look_into(made, File(made.path / "link")),
            "given": look_into(given, file),
            "folder": made,
            "file": File(made.path / "deep" / "a.txt"),
        }


    @root_env.task
    def ancestor(n: int) -> int:
        return n if n == 0 else 1 + ancestor(n - 1)
"""


@pytest.fixture
def call(run_local: RunLocal, project: MakeProject, runtime: str) -> Call:
    """`call("all_ways", "--n", "2")` runs a task of the flow with `--json` on the runtime under test."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})

    def run(*arguments: str) -> Finished:
        return run_local(*arguments, "--json", "--runtime", runtime, cwd=root)

    return run


def test_values_come_back_from_calls_of_every_kind(call: Call, runtime: str) -> None:
    """Blocking, awaited and gathered calls, files and large values; each in a process and environment of its own."""
    done = call("all_ways")
    assert done.code == 0, done.stderr
    doc = done.document
    result = doc["result"]
    assert result["one_by_one"] == [0, 2, 4]
    assert result["together"] == [0, 2, 4, 20]
    assert result["looked"]["flavour"] == "leaf"
    assert result["looked"]["cwd"] == []
    assert result["mine"][0] is None
    assert result["file"][:2] == ["made.txt", "content"]
    assert result["big"] == 300_000
    assert result["looked"]["uid"] == (65534 if runtime == "docker" and os.getuid() == 0 else os.getuid())
    assert (doc["status"], doc["runtime"]) == ("succeeded", runtime)
    assert {c["environment"] for c in doc["calls"]} == {"root", "leaf"}
    assert [c["id"] for c in doc["calls"] if c["parent"] is None] == ["1"]
    assert all(c["status"] == "succeeded" and c["attempts"] == 1 and c["key"] and c["python"] for c in doc["calls"])
    assert all((c["container"] is not None) == (runtime == "docker") for c in doc["calls"])


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("raise", "ValueError", "the task's own words"),
        ("exit", "exit", "(exit 7)"),
        ("sys.exit", "SystemExit", "leaving"),
        ("signal", "signal", "(signal 11)"),
        ("unpicklable", "NotPicklable", "generator"),
    ],
)
def test_a_failed_call_can_be_caught(call: Call, how: str, code: str, text: str) -> None:
    """Whatever ends a task, its caller gets a TaskError that names it, and goes on."""
    done = call("catch", "--how", how)
    assert done.code == 0, done.stderr
    caught = done.document["result"]
    assert (caught["code"], caught["task"]) == (code, "leaf.fail")
    assert text in caught["text"]
    if how == "raise":
        assert 'File "flow.py"' in caught["traceback"]
        assert "executor" not in caught["traceback"]


def test_an_uncaught_failure_is_told_from_the_inside_out(call: Call) -> None:
    """The user sees the failing task's own traceback, then who called it; exit code 1, and one JSON document."""
    done = call("let_fail", "--how", "raise")
    assert done.code == 1
    assert done.document["status"] == "failed"
    assert [c["status"] for c in done.document["calls"]] == ["failed", "failed"]
    story = done.stderr[done.stderr.index("error: ") :]
    assert story.index("ValueError: the task's own words") < story.index("called by `root.let_fail`")
    assert 'raise ValueError("the task\'s own words")' in story
    assert "run-local/" not in story.replace("run-local/lib", "")


def test_a_timeout_kills_the_whole_tree(call: Call) -> None:
    """What the task started dies with it; the run_local fixture fails if the `sleep` lives on."""
    done = call("wait_for_hang")
    assert (done.code, done.document["result"]) == (0, "timeout"), done.stderr
    assert done.seconds < 60


def test_retries_make_new_attempts(call: Call) -> None:
    """`retries=2` makes three attempts in all."""
    done = call("retry")
    assert done.code == 1
    assert {c["task"]: c["attempts"] for c in done.document["calls"]} == {"root.retry": 1, "leaf.flaky": 3}


def test_nothing_of_an_attempt_reaches_the_next(call: Call) -> None:
    """Files, processes and variables of one attempt are gone when the next begins in the same slot."""
    done = call("littered")
    assert (done.code, done.document["result"]) == (0, [[], [], None]), done.stderr


def test_files_of_the_result_are_in_the_outputs(call: Call) -> None:
    """Each path in the result is a file of the user's, also where two have the same name."""
    done = call("give", "--text", "abc")
    assert done.code == 0, done.stderr
    doc = done.document
    paths = [Path(path) for path in doc["result"]["files"]]
    assert [path.read_text() for path in paths] == ["abc", "abc!"]
    assert {str(path.parent) for path in paths} == {doc["outputs"]}
    assert paths[0].owner() == Path.home().owner()


def test_the_command_line_takes_files_lists_and_flags(call: Call, tmp_path: Path) -> None:
    """A file's content travels and cannot be changed; lists are JSON; defaults are the function's."""
    given = tmp_path / "given name.txt"
    given.write_text("hello")
    done = call("take", "--path", str(given), "--numbers", "[1, 2]", "--loud", "--note", "déjà vu")
    assert done.code == 0, done.stderr
    [name, text, _], *rest = done.document["result"]
    assert (name, text, rest) == ("given name.txt", "hello", [[1, 2], 0.5, True, "déjà vu"])


def test_a_strict_umask_does_not_lock_tasks_out(call: Call, tmp_path: Path) -> None:
    """Tasks of root run as another user, who can read what they are given all the same."""
    given = tmp_path / "given.txt"
    given.write_text("hello")
    before = os.umask(0o077)
    try:
        done = call("take", "--path", str(given), "--numbers", "[]")
        big = call("all_ways")
    finally:
        os.umask(before)
    assert done.code == 0, done.stderr
    assert big.code == 0, big.stderr


def test_calls_nest_deeper_than_the_machine_has_cores(call: Call) -> None:
    """A blocked caller lends its CPU."""
    done = call("ancestor", "--n", "5")
    assert (done.code, done.document["result"]) == (0, 5), done.stderr
    assert len(done.document["calls"]) == 6


def test_files_and_folders_travel_by_content(call: Call, tmp_path: Path) -> None:
    """From the command line, between tasks, and to the outputs; nobody writes to what he was given."""
    given = tmp_path / "given"
    given.mkdir()
    (given / "b.txt").write_text("given")
    done = call("folders", "--given", str(given), "--file", str(given / "b.txt"))
    assert done.code == 0, done.stderr
    result = done.document["result"]
    writable = os.getuid() == 0 and result["given"][3]  # as processes, root may write to anything that is not mounted
    assert result["made"] == ["results", ["a.txt", "link"], "made", writable]
    assert result["given"] == ["given", ["b.txt"], "given", writable]
    folder, file = Path(result["folder"]), Path(result["file"])
    assert (folder / "link").readlink() == Path("deep/a.txt")
    assert (folder.name, file.read_text(), (folder / "deep" / "a.txt").read_text()) == ("results", "made", "made")
    assert {path.stat().st_uid for path in (folder, file, folder / "deep" / "a.txt")} == {os.getuid()}
    assert not (given / "new").exists()
