"""Values between environments that hold different packages: what a parent may do with what it cannot open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Finished, MakeProject, RunLocal

Call = Callable[..., Finished]

PYTHON = ["python >=3.10"]
NUMPY = ["python >=3.10", "numpy >=1.26"]

CHILDREN = """
    import dataclasses

    import numpy as np

    from executor import Reuse, Resources, TaskEnvironment

    rich = TaskEnvironment("rich", resources=Resources(cpu=0.5, memory="1Gi"))


    class Odd(Exception):
        def __init__(self, array):
            super().__init__("odd", array)
            self.array = array


    @dataclasses.dataclass
    class Result:
        name: str
        array: np.ndarray


    @rich.task
    def make(n: int, scale: float = 1.0) -> dict:
        array = np.arange(n) * scale
        return {"array": array, "sum": float(array.sum()), "result": Result("r", array[: n // 2])}


    @rich.task
    def total(value, factor: int = 1) -> float:
        return float(sum(each.sum() for each in value)) * factor if isinstance(value, list) else float(value.sum())


    @rich.task
    def scribble(array: np.ndarray) -> float:
        array[:] = -1
        return float(array.sum())


    @rich.task
    def same(value):
        return value


    @rich.task
    def fail(n: int):
        if n == 1:
            np.linalg.inv(np.zeros((2, 2)))
        raise Odd(np.ones(n))


    @rich.task
    def kinds():
        return [np.ndarray, np.float64, np.arange, Odd]


    @rich.task
    def kind_names(kinds: list) -> list:
        return [kind.__name__ for kind in kinds]


    @rich.task
    def twice(n: int):
        array, number = np.ones(n), np.float64(n)
        return {"train": array, "same": array, "numbers": [number, number]}


    @rich.task
    def check_twice(value) -> list:
        return [value["train"] is value["same"], float(value["same"].sum()), float(sum(value["numbers"]))]


    @rich.task
    def local(n: int):
        class Local(np.ndarray):
            pass

        return [np.ones(n).view(Local), n]


    @rich.task
    def check_local(value) -> list:
        return [type(value[0]).__name__, float(value[0].sum()), value[1]]


    @rich.task
    async def later(n: int) -> np.ndarray:
        return np.ones(n)
"""

PARENT = """
    import asyncio

    import executor
    from executor import MissingModule, Resources, TaskEnvironment, TaskError, reference_task

    poor = TaskEnvironment("poor", depends_on=["rich"], resources=Resources(cpu=0.5, memory="512Mi"))

    make, total, fail, later = (reference_task(f"rich.{name}") for name in ("make", "total", "fail", "later"))
    scribble, same = reference_task("rich.scribble"), reference_task("rich.same")
    kinds, kind_names = reference_task("rich.kinds"), reference_task("rich.kind_names")
    twice, check_twice = reference_task("rich.twice"), reference_task("rich.check_twice")
    local, check_local = reference_task("rich.local"), reference_task("rich.check_local")


    @poor.task
    def middle(value) -> list:
        return [value, "passed"]


    @poor.task
    def pass_on(n: int = 100_000) -> dict:
        made = make(n)
        array = made["array"]
        info = executor.opaque_info(array)
        through = middle(array)
        return {
            "sum": made["sum"],
            "total": total([array, array, through[0], same(array)]),
            "half": total(made["result"].array),
            "scribbled": scribble(array),
            "after": total(array),
            "type": info.type,
            "module": info.module,
            "environment": info.environment,
            "size": info.size,
            "repr": repr(array),
        }


    @poor.task
    def touch(how: str) -> str:
        array = make(10)["array"]
        try:
            {"attribute": lambda: array.mean(), "index": lambda: array[0], "operator": lambda: array + 1,
             "truth": lambda: bool(array), "iterate": lambda: list(array), "compare": lambda: array == 1}[how]()
        except MissingModule as error:
            return str(error)
        return "nothing was raised"


    @poor.task
    def give_back(n: int):
        return {"array": make(n)["array"], "n": n}


    @poor.task
    def many(n: int = 4) -> dict:
        arrays = list(executor.map(later, [n] * 3, concurrency=2))
        failed = list(executor.map(fail, [1, 2]))

        async def together():
            return await asyncio.gather(*(later(n) for _ in range(2)), return_exceptions=True)

        gathered = asyncio.run(together())
        return {
            "map": total([*arrays, *gathered]),
            "codes": [error.code for error in failed],
            "originals": [executor.opaque_info(failed[0].original).type, type(failed[1].original).__name__],
            "inside": executor.opaque_info(failed[1].original.array).type,
            "kinds": kind_names(kinds()),
        }


    @poor.task
    def shared(n: int = 20_000) -> list:
        made = twice(n)
        return [check_twice(made), check_twice(middle(made)[0]), check_local(local(n))]


    @poor.task
    def wrong() -> list:
        texts = []
        for call in (
            lambda: make(),
            lambda: make("many"),
            lambda: make(1, size=2),
            lambda: make(1, 2.0, 3),
        ):
            try:
                call()
            except executor.UsageError as error:
                texts.append(str(error))
        return texts
"""


@pytest.fixture
def call(run_local: RunLocal, project: MakeProject, runtime: str) -> Call:
    root = project({"parent.py": PARENT, "children.py": CHILDREN}, {"rich": NUMPY, "poor": PYTHON})

    def call(task: str, *options: str) -> Finished:
        return run_local(task, "--json", "--runtime", runtime, *options, cwd=root)

    return call


def test_what_a_parent_cannot_open_passes_through_it(call: Call) -> None:
    """In lists, dicts, dataclasses and other values, through another poor task, and unchanged by its consumers."""
    done = call("pass_on", "--n", "100000")
    assert done.code == 0, done.stderr
    result, n = done.document["result"], 100_000
    whole = n * (n - 1) / 2
    assert (result["sum"], result["total"], result["after"]) == (whole, 4 * whole, whole)
    assert (result["half"], result["scribbled"]) == ((n // 2) * (n // 2 - 1) / 2, -n)
    assert (result["type"], result["module"], result["environment"]) == ("numpy.ndarray", "numpy", "rich")
    assert 8 * n <= result["size"] < 8 * n + 1000
    assert result["repr"].startswith("<opaque numpy.ndarray: array([")


@pytest.mark.parametrize("how", ["attribute", "index", "operator", "truth", "iterate", "compare"])
def test_any_other_use_says_what_is_missing_where(call: Call, how: str) -> None:
    """The module, the two environments, and the ways out."""
    text = call("touch", "--how", how).document["result"]
    for part in ("`numpy.ndarray`", "`numpy` is not in `poor`", "environment `rich`", "extends", "envs/poor"):
        assert part in text


def test_a_parent_returns_what_it_cannot_open(call: Call) -> None:
    """The result of the run is shown as text."""
    done = call("give_back", "--n", "3")
    assert done.code == 0, done.stderr
    assert "array([0., 1., 2.])" in done.document["result"]


def test_classes_exceptions_map_and_gather_pass_through_it(call: Call) -> None:
    """As single values do."""
    done = call("many", "--n", "4")
    assert done.code == 0, done.stderr
    assert done.document["result"] == {
        "map": 20.0,
        "codes": ["LinAlgError", "Odd"],
        "originals": ["numpy.linalg.LinAlgError", "Odd"],
        "inside": "numpy.ndarray",
        "kinds": ["ndarray", "float64", "arange", "Odd"],
    }


def test_what_is_shared_stays_shared(call: Call) -> None:
    """A handle that occurs twice is one object, however often it is handed on; also of a class that travels as code."""
    done = call("shared", "--n", "20000")
    assert done.code == 0, done.stderr
    assert done.document["result"] == [[True, 20000.0, 40000.0], [True, 20000.0, 40000.0], ["Local", 20000.0, 20000]]


def test_a_reference_has_the_signature_of_its_task(call: Call) -> None:
    """Missing, unknown, surplus arguments and wrong types are refused before anything is sent."""
    done = call("wrong")
    assert done.code == 0, done.stderr
    missing, kind, unknown, surplus = done.document["result"]
    assert all(text.startswith("task `rich.make` cannot be called like this") for text in (missing, kind))
    assert "`n`" in missing
    assert '"many"' in kind
    assert "`size`" in unknown
    assert "3" in surplus
    assert len(done.document["calls"]) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rich.mak", "there is no task `rich.mak` to refer to"),
        ("nowhere.work", "there is no task `nowhere.work` to refer to"),
    ],
)
def test_a_reference_to_nothing(run_local: RunLocal, project: MakeProject, runtime: str, name: str, text: str) -> None:
    """It is refused before anything is built, with its place and with what was meant."""
    source = f"""
        from executor import TaskEnvironment, reference_task

        env = TaskEnvironment("env", depends_on=["rich"])
        other = reference_task("{name}")

        @env.task
        def work() -> int:
            return other(1)
    """
    files = {"flow.py": source, "children.py": CHILDREN}
    root = project(files, {"env": PYTHON, "rich": NUMPY})
    done = run_local("work", "--runtime", runtime, cwd=root)
    assert done.code == 2
    assert text in done.stderr
    assert "flow.py:4" in done.stderr
    assert ("rich.make" in done.stderr) == (name == "rich.mak")


def test_a_reference_without_depends_on_is_refused(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Like a call of the task itself would be."""
    source = """
        from executor import TaskEnvironment, reference_task

        env = TaskEnvironment("env")
        other = reference_task("rich.make")

        @env.task
        def work() -> int:
            return other(1)
    """
    root = project({"flow.py": source, "children.py": CHILDREN}, {"env": PYTHON, "rich": NUMPY})
    done = run_local("work", "--runtime", runtime, cwd=root)
    assert done.code == 2
    assert "add `rich` to the `depends_on` of `env` (flow.py:3)" in done.stderr


REUSE = """
    import os
    import pathlib
    import random
    import subprocess
    import sys
    import time

    from executor import Resources, Reuse, TaskEnvironment

    small = Resources(cpu=0.5, memory="512Mi")
    warm = TaskEnvironment("warm", "envs/rich/environment.yml", reusable=Reuse(preload=["numpy"]), resources=small)
    fresh = TaskEnvironment("fresh", "envs/poor/environment.yml", reusable=Reuse(fork=False), resources=small)
    bad = TaskEnvironment("bad", "envs/poor/environment.yml", reusable=Reuse(preload=["nowhere"]), resources=small)
    root = TaskEnvironment("root", "envs/poor/environment.yml", depends_on=[warm, fresh, bad], resources=small)


    @warm.task
    def look() -> dict:
        import numpy
        names = [name for name in sys.modules if name.startswith("numpy")]
        return {"pid": os.getpid(), "loaded": len(names) > 50, "draw": float(numpy.random.random()), "own": random.random(),
                "mark": os.environ.pop("MARK", None), "files": os.listdir(os.environ["TMPDIR"])}


    @warm.task
    def preloaded() -> bool:
        return "numpy" in sys.modules


    @warm.task
    def litter() -> int:
        os.environ["MARK"] = "x"
        pathlib.Path(os.environ["TMPDIR"], "left").touch()
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


    @warm.task(timeout=0.3)
    def hang() -> None:
        time.sleep(600)


    @warm.task
    def crash() -> None:
        os._exit(3)


    @warm.task
    def kill_all() -> None:
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.getppid() == 1:  # the agent is alone with us in a namespace; anywhere else this would end the machine
            os.kill(-1, signal.SIGTERM)


    @fresh.task
    def sizes() -> int:
        return os.getpid()


    @bad.task
    def never() -> None:
        pass


    @root.task
    def all_of_it() -> dict:
        result = {"first": [look(), look()], "preloaded": preloaded(), "fresh": [sizes(), sizes()]}
        for task in (litter, hang, crash, kill_all):
            try:
                task()
            except Exception as error:
                result[task.short_name] = error.code
            if task is kill_all:
                for _ in range(2):  # the first may still find that what it is forked off is gone
                    try:
                        look()
                    except Exception:
                        pass
            result["after " + task.short_name] = look()
        try:
            never()
        except Exception as error:
            result["bad"] = str(error)
        return result
"""


def test_an_environment_that_preloads(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Each attempt is a fresh fork that holds the modules; nothing of one reaches the next, and no draw is repeated."""
    root = project({"flow.py": REUSE}, {"rich": NUMPY, "poor": PYTHON})
    done = run_local("all_of_it", "--json", "--runtime", runtime, cwd=root)
    assert done.code == 0, done.stderr
    result = done.document["result"]
    looks = [*result["first"], *(result[f"after {name}"] for name in ("litter", "hang", "crash", "kill_all"))]
    for key in ("draw", "own"):
        assert len({look[key] for look in looks}) == 6, key
    assert all((look["loaded"], look["mark"], look["files"]) == (True, None, []) for look in looks)
    assert result["preloaded"] is True
    assert len(set(result["fresh"])) == 2
    assert (result["hang"], result["crash"]) == ("timeout", "exit")
    assert "`nowhere` cannot be preloaded in environment `bad`" in result["bad"]


OVERRIDE = """
    import os
    import time

    import executor
    from executor import Resources, TaskEnvironment, TaskError

    small = Resources(cpu=0.5, memory="256Mi")
    leaf = TaskEnvironment("leaf", "envs/poor/environment.yml", env_vars={"A": "1"}, resources=small)
    root = TaskEnvironment("root", "envs/poor/environment.yml", depends_on=[leaf], resources=Resources(cpu=0.5))


    @leaf.task
    def see() -> list:
        return [os.environ.get("A"), os.environ.get("B"), os.environ["OMP_NUM_THREADS"]]


    @leaf.task
    def count(folder: str) -> int:
        raise ValueError("again")


    @leaf.task
    def slow(n: int) -> int:
        time.sleep(0.2 * (n % 2))
        return n


    def caught(call):
        try:
            return call()
        except TaskError as error:
            return [error.code, type(error.original).__name__, str(error)]


    @root.task
    def work() -> dict:
        tuned = see.override(env_vars={"B": "2"}, resources=Resources(cpu=(0.5, 2), memory="256Mi"))
        return {
            "plain": see(),
            "tuned": tuned(),
            "plain again": see(),
            "retried": caught(lambda: count.override(retries=2)("x")),
            "late": caught(lambda: slow.override(timeout=0.05)(1)),
            "too large": caught(lambda: see.override(resources=Resources(cpu=4000))()),
            "in order": list(executor.map(slow, range(6), concurrency=3)),
            "passed": caught(lambda: pass_it(tuned)),
        }


    @root.task
    def pass_it(task) -> list:
        return task()
"""


def test_a_task_on_other_terms(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Each of `override` reaches its calls, and no other call; a task that is passed on keeps them."""
    root = project({"flow.py": OVERRIDE}, {"poor": PYTHON})
    done = run_local("work", "--json", "--runtime", runtime, cwd=root)
    assert done.code == 0, done.stderr
    result = done.document["result"]
    assert (result["plain"], result["plain again"]) == (["1", None, "1"], ["1", None, "1"])
    assert result["tuned"] == result["passed"] == [None, "2", "2"]
    assert result["retried"][:2] == ["ValueError", "ValueError"]
    assert [call["attempts"] for call in done.document["calls"] if call["task"] == "leaf.count"] == [3]
    assert result["late"][0] == "timeout"
    assert "4000" in result["too large"][2]
    assert result["in order"] == [0, 1, 2, 3, 4, 5]


def test_one_array_is_stored_once(run_local: RunLocal, project: MakeProject, runtime: str, home: Path) -> None:
    """However many tasks it is handed through."""
    source = """
        import numpy as np

        from executor import TaskEnvironment

        one, two, poor = (TaskEnvironment(name, f"envs/{name}/environment.yml") for name in ("rich", "two", "poor"))
        root = TaskEnvironment("root", "envs/poor/environment.yml", depends_on=[one, two, poor])

        @one.task
        def make() -> np.ndarray:
            return np.random.random(123_456)

        @two.task
        def pass_on(value: np.ndarray) -> list:
            assert value.sum() > 0
            return [value, value[:100_000], 1]

        @poor.task
        def pass_blindly(value) -> dict:
            return {"value": value}

        @root.task
        def work() -> int:
            first, part, _ = pass_on(make())
            pass_on(pass_blindly(first)["value"])
            return len(pass_on(part))
    """
    root = project({"flow.py": source}, {"rich": NUMPY, "two": NUMPY, "poor": PYTHON})
    before = {path for path in (home / "store").rglob("*") if path.is_file()}
    done = run_local("work", "--json", "--runtime", runtime, cwd=root)
    assert done.document["result"] == 3, done.stderr
    made = {path for path in (home / "store").rglob("*") if path.is_file()} - before
    assert len([path for path in made if path.stat().st_size > 800_000]) == 1


FORKS = """
    import os
    import threading
    import time

    import executor
    from executor import TaskEnvironment

    leaf = TaskEnvironment("leaf", "envs/poor/environment.yml")
    root = TaskEnvironment("root", "envs/poor/environment.yml", depends_on=[leaf])


    @leaf.task
    def fork(fails: bool) -> str:
        pid = os.fork()
        if pid:
            time.sleep(0.2)
            return "parent"
        if fails:
            raise ValueError("in the child")
        return "child"


    @leaf.task
    def size(data: bytes) -> int:
        return len(data)


    @leaf.task
    def names() -> list:
        return ["\\udcff", "ok"]


    @leaf.task
    def view(given):
        return [given.format, given.shape, given.tolist()[:2], given]


    @root.task
    def all_of_it() -> dict:
        import array
        data = bytes(200_000)
        sent = memoryview(array.array("d", [1.5, 2.5] * 3000))
        back = view(sent)
        closed = executor.map(size, [data] * 6, concurrency=6)
        next(closed)
        closed.close()
        return {
            "forked": [fork(False), fork(True)],
            "sizes": sum(executor.map(size, [data] * 100)),
            "refused": [type(each).__name__ for each in executor.map(fork, ["x"])],
            "view": [back[:3], back[3].format, len(back[3])],
            "names": names(),
        }
"""


def test_what_tasks_may_do_to_their_values(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Fork and return twice, hand over many at once with few open files, give up on answers, name what is no text."""
    root = project({"flow.py": FORKS}, {"poor": PYTHON})
    done = run_local("all_of_it", "--json", "--runtime", runtime, cwd=root)
    assert done.code == 0, done.stderr
    result = done.document["result"]
    assert result["forked"] == ["parent", "parent"]
    assert (result["sizes"], result["refused"]) == (20_000_000, ["UsageError"])
    assert result["view"] == [["d", [6000], [1.5, 2.5]], "d", 6000]
    assert result["names"] == ["\udcff", "ok"]
