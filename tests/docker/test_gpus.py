"""GPUs in real slots, as far as that goes without any: nodes that are /dev/null, and a libcuda that knows which is which."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import pytest

from executor.data.leases import hold_lease
from executor.environments import Builder, read_spec
from executor.errors import MachineError
from executor.gpus import Gpu
from executor.manifest import Shape
from executor.runtimes import Launch, Runtime
from executor.runtimes.docker import PYTHON, DockerRuntime
from executor.runtimes.library import worker_library
from executor.runtimes.process import ProcessRuntime
from executor.runtimes.slot import Slot
from tests.harness import MakeProject
from tests.nvml.machine import DRIVER, THREE, FakeGpus

GPUS = tuple(Gpu(uuid=uuid, name="Fake A100", index=str(at), minor=minor) for at, (uuid, minor) in enumerate(THREE))
LOOK = """
import ctypes, json, os
try:
    ctypes.CDLL("libcuda.so.1")
    loads = True
except OSError:
    loads = False
folder = "/usr/local/nvidia/lib64"
print(json.dumps({
    "nodes": sorted(name for name in os.listdir("/dev") if name.startswith("nvidia")),
    "libraries": sorted(os.listdir(folder)) if os.path.isdir(folder) else [],
    "writable": os.access(folder, os.W_OK),
    "loads": loads,
    "variables": {name: text for name, text in os.environ.items() if "VISIBLE" in name or name.startswith("LD_")},
}))
"""


@dataclass(frozen=True)
class Slots:
    """Starts slots of one environment in a runtime, one session of it for each call."""

    home: Path
    launch: Launch
    runtime: str

    def __call__(self, use: Callable[[Runtime], Awaitable[Any]]) -> Any:
        """What `use` answers; the runtime is closed afterwards."""

        async def run() -> Any:
            made: Runtime = (
                DockerRuntime(self.home, self.launch.run) if self.runtime == "docker" else ProcessRuntime(self.home)
            )
            try:
                return await use(made)
            finally:
                await made.close()

        return asyncio.run(run())


@pytest.fixture
def slots(
    runtime: str, home: Path, project: MakeProject, tmp_path: Path, fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Slots]:
    """Slots on the machine with three devices."""
    for name, text in fake_gpus.variables.items():
        monkeypatch.setenv(name, text)
    root = project({}, {"gpu": ["python >=3.10"]})
    spec = read_spec(root / "envs/gpu/environment.yml", "gpu")
    builder = Builder("docker" if runtime == "docker" else "process", home, lambda *_: None)
    try:
        built = builder.build_spec(spec)
    finally:
        builder.close()
    folder = home / "runs" / f"20260101-000000-{abs(hash(tmp_path)) % 2**16:04x}"
    folder.mkdir(parents=True)
    shape = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=2**28, gpus=1, gpu_model="", shm_bytes=None)
    with hold_lease(folder) as lease:
        yield Slots(
            home,
            Launch(
                run=folder.name, number=1, environment="gpu", specification="s", key=built.key, image=built.image,
                prefix=built.prefix, variables=built.variables, shape=shape, project=root, import_roots=(".",),
                library=worker_library(home), folder=tmp_path / "slots" / "1", lease=lease,
            ),
            runtime,
        )  # fmt: skip
    folder.rmdir()


def _look(engine: docker.DockerClient, slot: Slot) -> dict[str, Any]:
    """What a process finds in a container."""
    asked = engine.api.exec_create(slot.container, [PYTHON, "-I", "-c", LOOK])["Id"]
    told: dict[str, Any] = json.loads(engine.api.exec_start(asked))
    return told


@pytest.mark.parametrize("runtime", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_a_container_has_its_devices_and_no_other(slots: Slots, engine: docker.DockerClient) -> None:
    """By their own nodes, with the driver's libraries read-only under the names that programs use; a CPU slot has none."""

    async def use(runtime: Runtime) -> None:
        with_two = await runtime.start(replace(slots.launch, gpus=(GPUS[2], GPUS[0])))
        assert sorted(with_two.hello["gpus"]["seen"]) == sorted(each.uuid[4:] for each in (GPUS[2], GPUS[0]))
        found = _look(engine, with_two)
        assert found["nodes"] == ["nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia1", "nvidiactl"]
        assert found["libraries"] == ["libcuda.so", "libcuda.so.1", f"libcuda.so.{DRIVER}"]
        assert (found["loads"], found["writable"]) == (True, False)
        assert found["variables"] == {"NVIDIA_VISIBLE_DEVICES": "void", "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}
        second = replace(slots.launch, number=2, folder=slots.launch.folder.with_name("2"))
        with_another = await runtime.start(replace(second, gpus=(GPUS[1],)))
        assert with_another.hello["gpus"]["nodes"] == ["nvidia2"]
        third = replace(slots.launch, number=3, folder=slots.launch.folder.with_name("3"))
        found = _look(engine, await runtime.start(third))
        assert (found["nodes"], found["libraries"], found["loads"]) == ([], [], False)
        assert found["variables"] == {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}

    slots(use)


@pytest.mark.parametrize("runtime", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_a_container_without_its_device_is_refused_with_every_reason(slots: Slots, fake_gpus: FakeGpus) -> None:
    """Never silently: what came of each way is told, here of an engine without the toolkit, and without a node."""
    (fake_gpus.root / "dev/nvidia-uvm").unlink()
    with pytest.raises(MachineError) as refused:
        slots(lambda runtime: runtime.start(replace(slots.launch, gpus=GPUS[:1])))
    assert refused.value.what == "no GPU can be given to a container of `gpu`"
    said = dict(line.split(": ", 1) for line in refused.value.why.splitlines())
    assert list(said) == ["CDI", "device request", "nvidia runtime", "device nodes"]
    node = fake_gpus.root / "dev/nvidia-uvm"
    assert said["device nodes"] == f"{node} is not there (`nvidia-modprobe -u -c 0` makes that one)"
    assert "could not select device driver" in said["device request"]
    assert said["nvidia runtime"] == "the engine has no runtime of that name"


def test_another_device_than_the_one_that_was_leased_is_refused(slots: Slots, fake_gpus: FakeGpus) -> None:
    """The agent looks at UUIDs: a node of another device, or a CUDA that shows none, is no GPU."""
    taken_for_another = replace(GPUS[0], minor=2)
    unknown = replace(GPUS[0], uuid="GPU-dddddddd-0000-4000-8000-000000000001")
    wrong, seen = (
        (taken_for_another, f"it was given {GPUS[0].uuid}, and CUDA shows {GPUS[1].uuid[4:]}")
        if slots.runtime == "docker"
        else (unknown, "cuInit of the driver answers CUDA_ERROR_NO_DEVICE; /dev/nvidiactl")
    )
    with pytest.raises(MachineError) as refused:
        slots(lambda runtime: runtime.start(replace(slots.launch, gpus=(wrong,))))
    assert seen in refused.value.why


@pytest.mark.parametrize("runtime", ["process"], indirect=True)
def test_a_process_sees_its_devices_in_the_order_of_nobody(slots: Slots) -> None:
    """CUDA keeps to those that are named; who gets none sees none."""

    async def use(runtime: Runtime) -> None:
        with_two = await runtime.start(replace(slots.launch, gpus=(GPUS[2], GPUS[0])))
        assert with_two.hello["gpus"]["seen"] == [GPUS[2].uuid[4:], GPUS[0].uuid[4:]]
        variables = Path(f"/proc/{with_two.pid}/environ").read_text().split("\0")
        assert f"CUDA_VISIBLE_DEVICES={GPUS[2].uuid},{GPUS[0].uuid}" in variables
        assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in variables
        second = replace(slots.launch, number=2, folder=slots.launch.folder.with_name("2"))
        without = await runtime.start(second)
        assert "CUDA_VISIBLE_DEVICES=" in Path(f"/proc/{without.pid}/environ").read_text().split("\0")

    slots(use)
