"""Calls that want a GPU, on a machine whose three GPUs are not there: leased by UUID, waited for, never shared."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor.gpus import Leases
from tests.harness import MakeProject, RunLocal
from tests.nvml.machine import DRIVER, THREE, UUIDS, FakeGpus, three

FLOW = """
    import os
    import time

    import executor
    from executor import Resources

    leaf = executor.TaskEnvironment("leaf", resources=Resources(cpu=0.1, memory="128Mi", gpu=1))
    large = executor.TaskEnvironment("large", resources=Resources(gpu="A100", gpu_memory="30Gi"), depends_on=[leaf])
    root = executor.TaskEnvironment("root", resources=Resources(cpu=0.1, memory="128Mi"), depends_on=[leaf, large])


    def device() -> str:
        # in a container it is the only one that there is
        nodes = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
        return os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(nodes)


    @leaf.task
    def compute(n: int, seconds: float = 1.0) -> tuple[str, float, float]:
        began = time.time()
        time.sleep(seconds)
        return device(), began, time.time()


    @large.task
    def much() -> str:
        return device()


    @root.task
    def plain() -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "unset") + device()


    @root.task
    def four() -> list[tuple[str, float, float]]:
        return list(executor.map(compute, range(4), return_exceptions=False))


    @leaf.task
    def nested() -> tuple[str, float, float]:
        return compute.override(resources=Resources(gpu=3))(1)
"""
BARE = ["python >=3.10"]


@pytest.fixture
def flow(project: MakeProject) -> Path:
    return project({"flow.py": FLOW}, {"leaf": BARE, "large": BARE, "root": BARE})


def uuid_of(device: str) -> str:
    """The UUID that a task named, or whose only node it found."""
    return next((uuid for uuid, minor in THREE if device == f"nvidia{minor}"), device)


def demand_no_sharing(spans: list[tuple[str, float, float]]) -> None:
    """No two calls were on one device at one time, and no call had another number of devices than one."""
    assert {uuid for uuid, _, _ in spans} <= set(UUIDS)
    for at, (uuid, began, ended) in enumerate(spans):
        for other, begins, ends in spans[at + 1 :]:
            assert uuid != other or ended <= begins or ends <= began


def test_what_devices_did_is_in_the_record(run_local: RunLocal, flow: Path, fake_gpus: FakeGpus) -> None:
    """Of a call that had one: its memory and how busy it was, and of no other; CPU time of both."""
    fake_gpus.show(three(free=30_000), busy=40)
    asked = ("--runtime", "process", "--json")
    had = run_local("compute", "--n", "1", *asked, cwd=flow, env=fake_gpus.variables).document["calls"][0]["used"]
    ((uuid, seen),) = had["gpus"].items()
    assert uuid in UUIDS
    assert {**seen, "samples": 0} == {"peak_bytes": 10_960 * 2**20, "utilisation": 0.4, "samples": 0}
    assert 1 <= seen["samples"] <= 20
    assert had["cpu_s"] > 0
    plain = run_local("plain", *asked, cwd=flow, env=fake_gpus.variables).document["calls"][0]["used"]
    assert set(plain) == {"cpu_s", "peak_bytes"}


def test_two_runs_never_have_one_device(run_local: RunLocal, flow: Path, runtime: str, fake_gpus: FakeGpus) -> None:
    """Eight calls for one GPU each, from two runs that begin together; what waits says for which device, and for whom."""
    assert run_local("build", "--runtime", runtime, cwd=flow).code == 0
    started = [
        run_local.start("four", "--runtime", runtime, "--json", cwd=flow, env=fake_gpus.variables) for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    results = [span for stdout, _ in told for span in json.loads(stdout)["result"]]
    spans = [(uuid_of(device), began, ended) for device, began, ended in results]
    assert len(spans) == 8
    demand_no_sharing(spans)
    runs = [json.loads(stdout)["run"] for stdout, _ in told]
    said = "".join(stderr for _, stderr in told)
    assert any(f"is held by run {run}" in said for run in runs), said


def test_a_device_of_a_killed_run_is_free(run_local: RunLocal, flow: Path, runtime: str, fake_gpus: FakeGpus) -> None:
    """The lease ends with its process, and who waits for it is told by the kernel."""
    fake_gpus.show(three()[:1])
    words = ("compute", "--n", "1", "--runtime", runtime, "--json")
    holder = run_local.start(*words, "--seconds", "600", cwd=flow, env=fake_gpus.variables)
    wait_for_line(holder, "▶ 1 leaf.compute")
    waiting = run_local.start(*words, "--seconds", "0", cwd=flow, env=fake_gpus.variables)
    wait_for_line(waiting, "waits: Fake A100 (GPU-cccccccc) is held by run ")
    holder.kill()
    stdout, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, stderr
    assert uuid_of(json.loads(stdout)["result"][0]) == UUIDS[0]


def test_a_strangers_process_keeps_a_device_busy(run_local: RunLocal, flow: Path, fake_gpus: FakeGpus) -> None:
    """It is told who, and waited until it has gone."""
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        fake_gpus.show(three(processes=[(stranger.pid, 3000)])[:1])
        words = ("compute", "--n", "1", "--seconds", "0", "--runtime", "process", "--json")
        process = run_local.start(*words, cwd=flow, env=fake_gpus.variables)
        wait_for_line(process, f"is in use by process {stranger.pid} (sleep) of")
        fake_gpus.show(three()[:1])
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert uuid_of(json.loads(stdout)["result"][0]) == UUIDS[0]
    finally:
        stranger.kill()
        stranger.wait()


def test_memory_on_the_device_is_waited_for(run_local: RunLocal, flow: Path, fake_gpus: FakeGpus) -> None:
    """`gpu_memory` takes the device that has it."""
    fake_gpus.show([*three(free=1000)[:2], three()[2]])
    done = run_local("much", "--runtime", "process", "--json", cwd=flow, env=fake_gpus.variables)
    assert done.document["result"] == UUIDS[2], done.stderr


def test_a_task_without_a_gpu_sees_none(run_local: RunLocal, flow: Path, runtime: str, fake_gpus: FakeGpus) -> None:
    """Whatever the machine has."""
    done = run_local("plain", "--runtime", runtime, "--json", cwd=flow, env=fake_gpus.variables)
    assert done.document["result"] == "", done.stderr


def test_a_machine_without_gpus_refuses_before_anything_is_built(
    run_local: RunLocal, flow: Path, fake_gpus: FakeGpus
) -> None:
    """It says what the driver says; and one that has too few says what there is."""
    fake_gpus.unload()
    began = time.monotonic()
    refused = run_local("compute", "--n", "1", "--json", cwd=flow, env=fake_gpus.variables)
    assert refused.code == 4
    assert "`leaf` asks for 1 GPU, and this machine has no GPU (" in refused.stderr
    assert time.monotonic() - began < 60
    fake_gpus.show(three(name="Tesla T4", total=16_000, free=16_000))
    other = run_local("much", "--json", cwd=flow, env=fake_gpus.variables)
    assert (other.code, "Tesla T4 (15.6 GiB)" in other.stderr) == (4, True), other.stderr


def test_what_its_own_caller_holds_is_refused_by_name(run_local: RunLocal, flow: Path, fake_gpus: FakeGpus) -> None:
    """A caller with a device whose call wants all three would wait for ever."""
    done = run_local("nested", "--runtime", "process", "--json", cwd=flow, env=fake_gpus.variables)
    assert done.code == 1
    assert "held by calls that wait for it: `leaf.nested`" in done.stderr


def wait_for_line(process: Any, text: str) -> None:
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return
    raise AssertionError("".join(said))


def test_doctor_tells_of_devices_and_who_has_them(run_local: RunLocal, fake_gpus: FakeGpus, tmp_path: Path) -> None:
    """For people and for programs: the driver, each device, its holder, and the processes on it."""
    broken = replace(three()[2], error=15)
    fake_gpus.show([three()[0], replace(three()[1], processes=[(2**22 + 1, 2048)]), broken])
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    holder = f"run 20260101-000000-0001 of {user}"
    lease = Leases(fake_gpus.leases).try_take([UUIDS[0]], "20260101-000000-0001")
    assert lease
    (tmp_path / "empty").mkdir()
    said = run_local("doctor", cwd=tmp_path / "empty", env=fake_gpus.variables)
    told = run_local("doctor", "--json", cwd=tmp_path / "empty", env=fake_gpus.variables)
    lease.close()
    assert said.code == told.code == 0, said.stderr + told.stderr
    lines = said.stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("gpus "))
    assert [line[17:] for line in lines[begin : begin + 6]] == [
        f"driver {DRIVER}, CUDA 12.4",
        f"{UUIDS[0]}  Fake A100, 39 of 40 GiB free",
        f"  held by {holder}",
        f"{UUIDS[1]}  Fake A100, 39 of 40 GiB free",
        f"  process {2**22 + 1} (not visible here) of somebody, 2.0 GiB",
        f"{UUIDS[2]}  Fake A100, the NVIDIA driver says: GPU is lost",
    ]
    found = told.document["gpus"]
    assert (found["driver"], found["cuda"], found["why"]) == (DRIVER, "12.4", "")
    assert [each["held"] for each in found["devices"]] == [holder, "", ""]
    assert found["devices"][1]["processes"][0]["used_bytes"] == 2048 * 2**20
