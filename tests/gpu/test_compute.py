"""A computation on a real GPU, in both runtimes; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor import gpus
from tests.gpu.compute import COUNT
from tests.harness import MakeProject, RunLocal

pytestmark = pytest.mark.gpu

FLOW = """
    from compute import compute

    from executor import Resources, TaskEnvironment

    cpu_env = TaskEnvironment("cpu", resources=Resources(cpu=0.5, memory="512Mi"))
    gpu_env = TaskEnvironment("gpu", resources=Resources(cpu=0.5, memory="4Gi", gpu=1), depends_on=[cpu_env])


    @cpu_env.task
    def without() -> str:
        try:
            return str(compute()["devices"])
        except (OSError, RuntimeError) as error:
            return type(error).__name__


    @gpu_env.task
    def with_one() -> dict:
        return {**compute(), "without": without()}
"""


@pytest.mark.slow  # it starts a driver in a container of its own, and builds two environments where none are kept
def test_a_task_computes_on_its_gpu(
    run_local: RunLocal, project: MakeProject, runtime: str, real_gpu: gpus.Gpu
) -> None:
    """The kernel is compiled by the driver and runs; the task sees one device, which is one of this machine."""
    source = Path(__file__).with_name("compute.py").read_text()
    root = project({"flow.py": FLOW, "compute.py": source}, {name: ["python >=3.10"] for name in ("cpu", "gpu")})
    finished = run_local("with_one", "--runtime", runtime, "--json", cwd=root)
    assert finished.code == 0, finished.stderr
    result = finished.document["result"]
    assert result["numbers"] == [7 * place for place in range(COUNT)]
    assert result["devices"] == 1
    assert result["uuid"] in {each.uuid.partition("-")[2].lower() for each in gpus.discover().usable}
    assert result["without"] in ("OSError", "RuntimeError")
    assert real_gpu.total_bytes > 0
