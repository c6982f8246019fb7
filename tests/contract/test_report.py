"""What a run leaves in its record for a report, on every runtime."""

from __future__ import annotations

import json
import re

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
