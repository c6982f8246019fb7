"""What a run leaves in its record for a report, on every runtime."""

from __future__ import annotations

import json
import re
from pathlib import Path

from executor.data.reports import read_report
from tests.harness import MakeProject, RunLocal

FLOW = """
    from executor import Resources, TaskEnvironment

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.2, memory="128Mi"))
    root_env = TaskEnvironment("root", depends_on=[leaf_env], resources=Resources(cpu=0.5, memory="256Mi"))


    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("nobody asked for this")


    @leaf_env.task
    def part(x: int, *more: object, y: object = None) -> int:
        print(f"part {x}")
        return x


    @root_env.task
    def whole(n: int, name: str = "ab") -> list:
        return [part(n, Odd(), list(range(5000)), y={"a": [1]})]
"""


SHOWN = """
    import os
    import pathlib
    import signal

    import executor as flyte
    from executor import Resources, RetryStrategy, TaskEnvironment

    env = TaskEnvironment("root", resources=Resources(cpu=0.2, memory="128Mi"), secrets=["word"])


    @env.task(report=True, retries=RetryStrategy(1), cache="auto")
    async def draw(marks: str) -> int:
        flyte.report.log("<h2>Loss</h2>")
        pathlib.Path("plot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        flyte.report.get_tab("figures").image("plot.svg", "a curve")
        flyte.report.log("said " + os.environ["WORD"])
        flyte.report.log("x" * 20 * 2**20)
        if os.fork() == 0:
            try:
                flyte.report.log("a stranger's")
            finally:
                os._exit(0)
        os.wait()
        if marks == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        await flyte.report.log.aio("<p>second attempt</p>", do_flush=True)
        flyte.report.flush()
        return 1
"""


def test_what_a_task_logs_for_people_is_in_its_record(
    runtime: str, run_local: RunLocal, project: MakeProject, tmp_path: Path
) -> None:
    """By call and attempt, although the task was killed; no secret, nothing too large; and a cached call shows it."""
    root = project({"flow.py": SHOWN}, {"root": ["python >=3.11"]})
    killed = run_local("draw", "--marks", "killed", "--runtime", runtime, "--json", cwd=root, env={"WORD": "hunter2!"})
    assert killed.code == 1, killed.stderr
    folder = run_local.home / "runs" / killed.document["run"]
    for attempt in (1, 2):
        main, figures = read_report(folder, "1", attempt, 10**6)
        assert main.html.startswith("<h2>Loss</h2>said ")
        assert "20.0 MiB that were logged at once are too much" in main.html
        assert "hunter2!" not in main.html
        assert "stranger" not in main.html
        assert (figures.name, "data:image/svg+xml;base64," in figures.html) == ("figures", True)
    for status in ("succeeded", "cached"):
        done = run_local("draw", "--marks", "no", "--runtime", runtime, "--json", cwd=root, env={"WORD": "hunter2!"})
        assert [call["status"] for call in done.document["calls"]] == [status]
        written = run_local("report", done.document["run"], "-o", tmp_path / "page.html", cwd=root)
        assert written.code == 0, written.stderr
        embedded = re.search(r'id="details">(.*?)</script>', (tmp_path / "page.html").read_text())
        assert embedded
        tabs = json.loads(embedded[1])["calls"][0]["reports"]
        assert [name for name, _, _ in tabs] == ["Report", "figures"]
        assert tabs[0][1].endswith("<p>second attempt</p>")


def test_the_record_tells_what_a_report_shows(runtime: str, run_local: RunLocal, project: MakeProject) -> None:
    """The machine, the packages, the arguments of each call, the slots; and the page has them."""
    packages = ["python >=3.11"]
    root = project({"flow.py": FLOW}, {"leaf": packages, "root": packages})
    done = run_local("whole", "--n", "7", "--runtime", runtime, "--json", cwd=root)
    assert done.code == 0, done.stderr
    written = run_local("report", done.document["run"], "-o", root / "page.html", cwd=root)
    assert (written.code, written.stdout) == (0, f"{root / 'page.html'}\n"), written.stderr
    page = (root / "page.html").read_text()
    data, details = (
        json.loads(found) for found in re.findall(r'<script type="application/json".*?>(.*?)</script>', page)
    )
    assert details["calls"][0]["arguments"] == {"n": {"json": 7}}
    assert details["calls"][1]["arguments"] == {
        "x": {"json": 7},
        "*2": {"text": "<flow.Odd>"},
        "*3": {"text": "<list of length 5000>"},
        "y": {"json": {"a": [1]}},
    }
    assert details["calls"][1]["logs"] == [["part 7", 7, False]]
    assert data["lanes"] == [["leaf", "slot 2"], ["root", "slot 1"]]
    for pattern in (r"<dt>Machine</dt>", r"<bdi>python</bdi> <span><bdi>3\.", r"[\d.]+ MiB of 128 MiB"):
        assert re.search(pattern, page) or (runtime == "process" and "MiB" in pattern), pattern
    assert ("Engine" in page) == (runtime == "docker")
