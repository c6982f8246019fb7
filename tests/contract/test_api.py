"""Runs that a script of the user's starts with `executor.run`: on every runtime, each script a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from tests.harness import MakeProject, RunLocal

PATIENCE_S = 300
PYTHON = ["python >=3.10"]

FLOW = """
    import dataclasses
    import pathlib
    import sys
    import time
    import types

    import executor
    from executor import Resources, TaskEnvironment

    env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"))


    @dataclasses.dataclass
    class Pair:
        left: int
        right: int


    @env.task
    def double(x: int) -> int:
        print("printed by a task")
        return 2 * x


    @env.task
    async def later(x: int) -> int:
        return x


    @env.task
    def reverse(data: bytes) -> bytes:
        return data[::-1]


    @env.task
    def swap(pair: Pair, *more: int, **named: int) -> Pair:
        return Pair(pair.right + sum(more), pair.left + sum(named.values()))


    @env.task
    def shout(path: pathlib.Path) -> pathlib.Path:
        made = pathlib.Path("shouted.txt")
        made.write_text(path.name + ": " + path.read_text().upper())
        return made


    @env.task
    def look(paths: list[pathlib.Path]) -> list[str]:
        return [path.read_text() if path.is_file() else sorted(each.name for each in path.iterdir()) for path in paths]


    @env.task
    def strange() -> object:
        module = sys.modules["only_there"] = types.ModuleType("only_there")
        exec("class Thing: pass", vars(module))
        return module.Thing()


    @env.task
    def fail(word: str = "own") -> None:
        raise ValueError(f"the task's {word} words")


    @env.task
    def hang() -> None:
        print("hanging", flush=True)
        time.sleep(600)


    @env.task
    def nested() -> int:
        return executor.run(double, 1).result()
"""


@dataclass(frozen=True)
class Scripts:
    """Runs scripts beside a workflow, with `start(task, …)` for `executor.run` on the runtime under test."""

    run_local: RunLocal
    root: Path
    runtime: str

    def __call__(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        process = self.start(text)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start(self, text: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a script in a process group of its own."""
        script = self.root / "script.py"
        head = f"import executor\n\nstart = executor.with_options(runtime={self.runtime!r}, verbose=True).run\n"
        script.write_text(head + dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=self.root.parent,
            env={
                **self.run_local.variables,
                "RUN_LOCAL_HOME": str(self.run_local.home),
                "NO_COLOR": "1",
                "TERM": "xterm",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self.run_local.started.append(process)
        return process

    def runs(self) -> set[str]:
        """The ids of all runs so far."""
        folder = self.run_local.home / "runs"
        return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.fixture
def script(run_local: RunLocal, project: MakeProject, runtime: str) -> Scripts:
    """Scripts in a project with the flow above."""
    return Scripts(run_local, project({"flow.py": FLOW}, {"leaf": PYTHON}), runtime)


def test_values_come_back_as_python_objects(script: Scripts, tmp_path: Path) -> None:
    """Numbers, bytes that are too large for a frame, dataclasses of the project's, files; nothing of ours on stdout."""
    (tmp_path / "given.txt").write_text("hello")
    done = script(
        """
        import pathlib
        from flow import Pair, double, later, reverse, shout, swap

        run = start(double, 21)
        print(run.status in ("running", "succeeded"), isinstance(run, executor.Run))
        print(run.result(), run.status, run.done(), run.wait(), [(call.task, call.status) for call in run.calls])
        data = bytes(range(256)) * 1000
        print(start(reverse, data=data).result() == data[::-1], start(later, 5).result())
        print(start(swap, Pair(1, 2), 10, 20, a=5).result())
        made = start(shout, pathlib.Path("given.txt"))
        print(made.result().read_text(), made.result().parent == made.outputs)
        again = executor.Run.load(made.id)
        print(again.status, again.result().name, run.id != made.id and repr(again) == f"<run {made.id}: succeeded>")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True True",
        "42 succeeded True True [('leaf.double', 'succeeded')]",
        "True 5",
        "Pair(left=32, right=6)",
        "given.txt: HELLO True",
        "succeeded shouted.txt True",
    ]
    assert "printed by a task" in done.stderr
    assert "✓ 1 leaf.double" in done.stderr


def test_files_and_folders_of_this_machine_travel(script: Scripts, tmp_path: Path) -> None:
    """Wherever their paths are in the inputs; a path to nothing stays what it is."""
    (tmp_path / "given.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    done = script(
        """
        from pathlib import Path
        from flow import look

        print(start(look, [Path("given.txt"), Path("folder")]).result())
        start(look, [Path("nothing-like-this")]).result()
        """
    )
    assert (done.returncode, done.stdout) == (1, "['hello', ['inside']]\n"), done.stderr
    assert "No such file or directory: 'nothing-like-this'" in done.stderr


def test_a_value_that_cannot_be_opened_here_says_what_is_missing(script: Scripts) -> None:
    """The run succeeded all the same."""
    done = script(
        """
        from flow import strange

        run = start(strange)
        try:
            run.result()
        except executor.MissingModule as error:
            print(run.status)
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "succeeded",
        "the result is of type `only_there.Thing`, and cannot be opened here",
        "  why: this Python does not hold `only_there`",
        "  hint: install it here, or let the task return plain data",
    ]


def test_several_runs_at_once(script: Scripts) -> None:
    """Each has its own record, and its own value."""
    done = script(
        """
        from flow import double

        started = [start(double, n) for n in range(3)]
        print([run.result() for run in started], len({run.id for run in started}))
        """
    )
    assert (done.returncode, done.stdout) == (0, "[0, 2, 4] 3\n"), done.stderr


def test_a_failed_task_raises_its_story(script: Scripts) -> None:
    """`wait` does not raise it, `result` does: with code, task, and the task's own traceback."""
    done = script(
        """
        from flow import fail

        run = start(fail)
        print(run.wait(), run.status)
        try:
            run.result()
        except executor.TaskError as error:
            print(error.code, error.task, error.call)
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    first, second, *text = done.stdout.splitlines()
    assert (first, second) == ("True failed", "ValueError leaf.fail 1")
    assert text[0] == "task `leaf.fail` failed: ValueError: the task's own words"
    assert any('File "flow.py"' in line for line in text)
    assert not any("executor" in line for line in text)
    assert "run-local show" in text[-1]


def test_a_script_that_ends_waits_for_its_runs(script: Scripts) -> None:
    """The run comes to its end, and a failure that nobody asked for is told all the same."""
    before = script.runs()
    done = script("from flow import fail\n\nstart(fail, 'last')\nprint('end of script')\n")
    assert (done.returncode, done.stdout) == (0, "end of script\n"), done.stderr
    assert "failed after" in done.stderr
    assert "error: task `leaf.fail` failed: ValueError: the task's last words" in done.stderr
    [run] = script.runs() - before
    assert not (script.run_local.home / "runs" / run / "slots").exists()


def test_a_run_can_be_cancelled(script: Scripts) -> None:
    """It ends soon, is called cancelled by its record, and leaves nothing."""
    done = script(
        """
        import time
        from flow import hang

        run = start(hang)
        while not run.done() and not any(call.status == "running" for call in run.calls):
            time.sleep(0.05)
        print(run.wait(timeout=0.01), run.done())
        try:
            run.result(timeout=0.01)
        except TimeoutError as error:
            print(error)
        run.cancel()
        print(run.wait(), run.status, [call.status for call in run.calls])
        try:
            run.result()
        except executor.TaskError as error:
            print(error.code, executor.Run.load(run.id).status)
        """
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "False False"
    assert lines[1].endswith("is not over after 0.01 s")
    assert lines[2:] == ["True cancelled ['cancelled']", "cancelled cancelled"]


def test_progress_is_live_in_a_terminal_and_stays_out_of_stdout(script: Scripts) -> None:
    """Two runs side by side on a terminal; what the script prints meanwhile is in the file that it prints to."""
    terminal, theirs = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        process = script.start(
            """
            from flow import double

            started = [start(double, n) for n in range(2)]
            print("meanwhile")
            print([run.result() for run in started])
            """,
            stderr=theirs,
        )
        os.close(theirs)
        lines = b""
        with contextlib.suppress(OSError):  # the end of a terminal that nobody has open any more
            while data := shown.read(4096):
                lines += data
        stdout, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (0, "meanwhile\n[0, 2]\n"), lines
    assert lines.count("✓ 1 leaf.double".encode()) == 2
    assert b"\x1b[?25l" in lines  # the cursor is hidden while something moves
    assert lines.count(b"\x1b[?25h") == lines.count(b"\x1b[?25l")


@pytest.mark.parametrize("where", ["result", "end", "elsewhere"])
def test_ctrl_c_cancels_the_run(script: Scripts, where: str) -> None:
    """Whether the script waits for the result, has come to its end, or does something else."""
    text = {"result": "run.result()", "end": "print('end of script')", "elsewhere": "import time; time.sleep(600)"}
    before = script.runs()
    process = script.start(f"from flow import hang\n\nrun = start(hang)\n{text[where]}\n")
    assert process.stderr is not None
    assert any("│ hanging" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode == -signal.SIGINT) == (where != "end"), stderr
    assert stdout == ("end of script\n" if where == "end" else "")
    assert ("KeyboardInterrupt" in stderr) == (where != "end")
    assert "cancelled after" in stderr
    [run] = script.runs() - before
    assert {path.name for path in (script.run_local.home / "runs" / run).iterdir()} <= {
        "journal.jsonl",
        "logs",
        "outputs",
    }


def test_a_run_that_is_cancelled_before_it_is_built_never_starts(script: Scripts) -> None:
    """It is cancelled, has no calls, and the next run finds what it needs."""
    done = script(
        """
        from flow import double

        run = start(double, 1)
        run.cancel()
        print(run.wait(), run.status)
        print(start(double, 1).result())
        """
    )
    assert (done.returncode, done.stdout) == (0, "True cancelled\n2\n"), done.stderr


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("double()", "`x` is missing"),
        ("double(1, y=2)", "there is no `y`"),
        ("double(1, 2)", "it takes 1 values by position, and 2 are given"),
        ("double('1')", "`x` must be a whole number"),
        ("shout(3)", "must be the path of a file or folder"),
        ("double.function(1)", "hint: pass the function with `@env.task` itself"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_starts(script: Scripts, call: str, told: str) -> None:
    """`UsageError`, and no run is recorded."""
    before = script.runs()
    name, _, rest = call.partition("(")
    given = "double.function(1)" if name == "double.function" else f"{name}, {rest[:-1]}"
    done = script(f"from flow import double, shout\n\nstart({given})\n")
    assert done.returncode == 1
    assert "UsageError: " in done.stderr
    assert told in done.stderr
    assert script.runs() == before


def test_an_environment_that_cannot_be_made_raises_its_error(script: Scripts) -> None:
    """As its own class, from `wait` and from `result`; the record has it, too."""
    (script.root / "envs" / "leaf" / "environment.yml").write_text("dependencies: 7\n")
    done = script(
        """
        from executor.errors import SpecError
        from flow import double

        run = start(double, 1)
        for ask in (run.wait, run.result):
            try:
                ask()
            except SpecError as error:
                print("refused", bool(error.what))
        print(run.status, run.calls)
        """
    )
    assert (done.returncode, done.stdout) == (0, "refused True\nrefused True\nfailed []\n"), done.stderr


OWN = """
    import dataclasses
    import enum

    import executor
    from executor import Run, TaskEnvironment

    env = TaskEnvironment("leaf")


    class Way(enum.Enum):
        UP = "up"


    @dataclasses.dataclass
    class Step:
        way: Way
        far: int


    @env.task
    def walk(step: Step) -> Step:
        assert isinstance(step, Step) and step.way is Way.UP, step
        return Step(step.way, step.far + 1)


    {guard}
        run: Run[Step] = start(walk, Step(Way.UP, 1))
        got = run.result()
        print(got, isinstance(got, Step), got.way is Way.UP, Step.__module__)
"""


@pytest.mark.parametrize("guard", ['if __name__ == "__main__":', "if True:"])
def test_a_script_may_hold_its_tasks_itself(script: Scripts, guard: str) -> None:
    """What it defines is the same to it and to its tasks; a run that is not guarded would start itself, and is refused."""
    done = script(OWN.format(guard=guard))
    if "__main__" in guard:
        assert done.returncode == 0, done.stderr
        assert done.stdout == "Step(way=<Way.UP: 'up'>, far=2) True True __main__\n"
    else:
        assert done.returncode == 1
        assert "ProjectError: `executor.run` cannot be used here" in done.stderr
        assert 'under `if __name__ == "__main__":`' in done.stderr


def test_a_run_inside_a_task_is_refused(script: Scripts) -> None:
    """The task fails, and says to call the other task itself."""
    done = script("from flow import nested\n\nstart(nested).result()\n")
    assert done.returncode == 1
    assert "`executor.run` cannot be used here" in done.stderr
    assert "in a task, call the other task itself" in done.stderr


def test_a_task_without_a_file_is_refused(script: Scripts) -> None:
    """One of a notebook or of a prompt cannot be imported by a container."""
    done = script(
        """
        import sys
        from flow import env, double

        @env.task
        def prompted() -> int:
            return 1

        del sys.modules["__main__"].__file__
        print(start(double, 1).result())
        start(prompted)
        """
    )
    assert (done.returncode, done.stdout) == (1, "2\n")
    assert "task `leaf.prompted` is in no file" in done.stderr
