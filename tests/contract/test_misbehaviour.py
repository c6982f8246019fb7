"""What a task may do to itself, to its slot and to its calls, on every runtime: it fails or not, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import Finished, MakeProject, RunLocal

Call = Callable[..., Finished]

PYTHON = ["python >=3.11"]

FLOW = """
    import asyncio
    import os
    import pathlib
    import resource
    import shutil
    import signal
    import threading
    import time

    from executor import Resources, TaskEnvironment, TaskError

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.2, memory="128Mi"))
    odd_env = TaskEnvironment("odd", image="envs/leaf/environment.yml", resources=Resources(cpu=0.2, memory="100M"))
    root_env = TaskEnvironment("root", depends_on=[leaf_env, odd_env], resources=Resources(cpu=0.5, memory="256Mi"))


    @leaf_env.task
    def slow(x: int, seconds: float) -> int:
        time.sleep(seconds)
        return x


    @leaf_env.task
    def boom() -> None:
        raise ValueError("the real reason")


    @leaf_env.task
    def big(n: int) -> bytes:
        return os.urandom(n)


    @root_env.task
    async def give_up() -> list:
        try:
            await asyncio.wait_for(slow.aio(1, 1), 0.3)
        except asyncio.TimeoutError:
            pass
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(boom.aio())
                group.create_task(slow.aio(2, 1))
        except* TaskError:
            pass
        return [await slow.aio(3, 1.5), await slow.aio(4, 0)]


    @root_env.task
    def forget() -> int:
        for _ in range(50):
            threading.Thread(target=slow, args=(1, 600), daemon=True).start()
        return 1


    @root_env.task
    async def group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(boom.aio())


    @root_env.task
    async def fan(n: int) -> int:
        return sum(map(len, await asyncio.gather(*(big.aio(100_000) for _ in range(n)))))


    @root_env.task(timeout=3)
    async def deaf() -> None:
        waiting = [asyncio.ensure_future(big.aio(60_000)) for _ in range(12)]
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGSTOP)


    @leaf_env.task
    def write() -> pathlib.Path:
        made = pathlib.Path("made.txt")
        made.write_text("original")
        return made


    @leaf_env.task
    def modify(path: pathlib.Path) -> None:
        try:
            with path.open("a") as file:
                file.write(" CHANGED")
        except OSError:
            pass


    @root_env.task
    def share() -> list:
        made = write()
        modify(made)
        return [made.read_text(), write().read_text()]


    @leaf_env.task
    def use_home() -> list:
        home = pathlib.Path.home()
        there = os.listdir(home)
        (home / "left.txt").write_text("x")
        return [there, home / "left.txt"]


    @root_env.task
    def homes() -> list:
        return [(there, path.read_text()) for there, path in (use_home(), use_home())]


    @odd_env.task
    def one() -> int:
        return 1


    @leaf_env.task(timeout=30 * 24 * 3600)
    def patient() -> int:
        return 1


    @leaf_env.task(timeout=float("inf"))
    def very_patient() -> int:
        return 1


    @leaf_env.task
    def spoil(what: str) -> int:
        if what == "work":
            shutil.rmtree(os.getcwd())
        elif what == "tmp":
            shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
        elif what == "outputs":
            shutil.rmtree("../outputs")
        elif what == "modes":
            os.makedirs("a/b")
            pathlib.Path("a/b/c").touch()
            os.chmod("a/b", 0)
            os.chmod("a", 0)
            os.chmod(".", 0)
        return 1


    @leaf_env.task
    def look() -> list:
        return [os.listdir("."), os.path.isdir(os.environ["TMPDIR"]), os.path.isdir(os.environ["HOME"])]


    @root_env.task
    def spoiled(what: str) -> list:
        return [spoil(what), look()]


    class BadError(Exception):
        def __str__(self):
            raise RuntimeError("no text")


    @leaf_env.task
    def fail(how: str) -> None:
        if how == "without text":
            raise BadError
        if how == "at length":
            raise ValueError("x" * 5_000_000)
        os.closerange(3, 4096)


    @root_env.task
    def let_fail(how: str) -> None:
        fail(how)


    class Caller:
        def __init__(self) -> None:
            self.value = 0

        def __setstate__(self, state: dict) -> None:
            self.value = slow(7, 0)


    @leaf_env.task
    def make_caller() -> Caller:
        return Caller()


    @root_env.task
    def open_caller() -> int:
        return make_caller().value


    @leaf_env.task
    def shared() -> list:
        made = []
        for _ in range(32):
            made = [made, made]
        return made


    @leaf_env.task
    def limits() -> list:
        return list(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.fixture
def call(run_local: RunLocal, project: MakeProject, runtime: str) -> Call:
    """`call("fan", "--n", "2")` runs a task of the flow with `--json`; none of them takes long."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})

    def run(*arguments: str) -> Finished:
        return run_local(*arguments, "--json", "--runtime", runtime, cwd=root, timeout_s=300)

    return run


def result(done: Finished) -> object:
    assert done.code == 0, done.stderr
    return done.document["result"]


def test_a_call_given_up_is_stopped_and_its_caller_goes_on(call: Call) -> None:
    """A timeout of the caller's, or another's failure in its group, cancels an awaited call; later calls are answered."""
    done = call("give_up")
    assert result(done) == [3, 4]
    statuses = [c["status"] for c in done.document["calls"] if c["parent"]]
    assert sorted(statuses) == ["cancelled", "cancelled", "failed", "succeeded", "succeeded"]
    assert done.seconds < 30


def test_calls_that_nobody_waits_for_end_with_their_caller(call: Call) -> None:
    """However far each of them had come."""
    done = call("forget")
    assert result(done) == 1
    assert {c["status"] for c in done.document["calls"] if c["parent"]} <= {"cancelled"}


def test_what_failed_in_a_group_is_told(call: Call) -> None:
    """The story of the call, not only that there was one."""
    done = call("group")
    assert done.code == 1
    assert "ValueError: the real reason" in done.stderr
    assert "called by `root.group`" in done.stderr


def test_many_large_values_at_once(call: Call) -> None:
    """More slots than this machine has spare threads."""
    assert result(call("fan", "--n", "9")) == 900_000


def test_a_task_that_does_not_listen_is_stopped_in_time(call: Call) -> None:
    """Stopped, with more answers on their way than its line holds."""
    done = call("deaf")
    assert (done.code, done.document["error"]["code"]) == (1, "timeout"), done.stderr
    assert done.seconds < 30


def test_a_given_file_is_its_givers_for_ever(call: Call) -> None:
    """What one task writes to the file that it was given, nobody else reads."""
    assert result(call("share")) == ["original", "original"]


def test_every_attempt_has_a_home_of_its_own(call: Call) -> None:
    """There, empty, and a file in it travels like any other."""
    assert result(call("homes")) == [[[], "x"], [[], "x"]]


@pytest.mark.parametrize("task", ["one", "patient", "very_patient"])
def test_odd_amounts_are_amounts(call: Call, task: str) -> None:
    """Memory that is no multiple of a page, and timeouts of a month or without end."""
    assert result(call(task)) == 1


@pytest.mark.parametrize("what", ["work", "tmp", "outputs", "modes"])
def test_a_task_may_spoil_its_own_folders(call: Call, what: str) -> None:
    """It has its value, and the next one finds all that it needs, in the same slot or another."""
    done = call("spoiled", "--what", what)
    assert result(done) == [1, [[], True, True]]
    assert {c["attempts"] for c in done.document["calls"]} == {1}


@pytest.mark.parametrize(
    ("how", "code", "text"), [("without text", "BadError", "RuntimeError"), ("at length", "ValueError", "xxxx")]
)
def test_every_failure_can_be_told(call: Call, how: str, code: str, text: str) -> None:
    """An exception without a text, or with one of megabytes, is told by its class and what there is of it."""
    done = call("let_fail", "--how", how)
    assert done.code == 1
    assert f"task `leaf.fail` failed: {code}: " in done.stderr
    assert text in done.stderr
    assert len(done.stderr) < 300_000


def test_a_failure_that_cannot_be_sent_is_in_the_log(call: Call, run_local: RunLocal, project: MakeProject) -> None:
    """A task that has closed its line says on stderr what happened."""
    done = call("let_fail", "--how", "closed")
    assert done.code == 1
    assert "(exit 70)" in done.stderr
    logs = run_local("logs", done.document["run"], cwd=project.folder)
    assert "Bad file descriptor" in logs.stdout


def test_opening_a_value_may_call_a_task(call: Call) -> None:
    """Whoever waits for the value opens it."""
    assert result(call("open_caller")) == 7


def test_a_value_too_large_to_be_shown_is_shown_in_part(call: Call) -> None:
    """Written out it would be gigabytes."""
    shown = result(call("shared"))
    assert isinstance(shown, str)
    assert shown.startswith("[[")


def test_a_task_may_have_many_files_open(call: Call) -> None:
    """As many as the machine lets it, in reason."""
    limits = result(call("limits"))
    assert isinstance(limits, list)
    soft, hard = limits
    assert soft == hard or soft >= 65536
