"""GPUs as NVML shows them, leases between processes, and what a slot is given; on a machine that has none."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.types import HostConfig

from executor.environments.cuda import cuda_of, driver_complaint
from executor.environments.lock import Lock, Package
from executor.errors import MachineError
from executor.gpus import Gpu, GpuProcess, Leases, Own, as_device, foreign
from executor.manifest import Shape
from executor.runtimes import Launch, docker
from executor.runtimes import gpus as passing
from executor.runtimes.gpus import Driver, Offer, Passed
from executor.worker import gpus as inside
from tests.nvml.machine import DRIVER, SLICES, UUIDS, FakeGpu, FakeGpus, compile_library, three

FOUND = """
found = gpus.discover()
from dataclasses import asdict
print(json.dumps(asdict(found)))
"""

TAKE = """
leases = gpus.Leases()
lease = leases.try_take(sys.argv[1].split(","), sys.argv[2])
print(json.dumps(lease and lease.uuids), flush=True)
sys.stdin.read()
"""

CONTEND = """
import asyncio

async def work():
    leases, log = gpus.Leases(), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
    for _ in range(8):
        while not (lease := next(filter(None, (leases.try_take([each], "r") for each in sys.argv[1].split(","))), None)):
            await leases.wait_released(sys.argv[1].split(","))
        os.write(log, f"+ {lease.uuids[0]}\\n".encode())
        await asyncio.sleep(0.005)
        os.write(log, f"- {lease.uuids[0]}\\n".encode())
        lease.close()

asyncio.run(work())
print(json.dumps("done"))
"""

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=1, gpu_model="", shm_bytes=None)
NO_TOOLKIT = Offer(cdi=(), runtimes=frozenset({"runc"}))


# -- discovery ---------------------------------------------------------------------------------------------------------


def test_every_device_is_told_by_uuid_whatever_its_numbers(fake_gpus: FakeGpus) -> None:
    """The order of the driver, of the device nodes and of the UUIDs are three."""
    found = fake_gpus.ask(FOUND)
    assert [(each["uuid"], each["index"], each["minor"]) for each in found["gpus"]] == [
        ("GPU-cccccccc-0000-4000-8000-000000000001", "0", 1),
        ("GPU-aaaaaaaa-0000-4000-8000-000000000002", "1", 2),
        ("GPU-bbbbbbbb-0000-4000-8000-000000000000", "2", 0),
    ]
    first = found["gpus"][0]
    assert (first["name"], first["total_bytes"], first["free_bytes"]) == ("Fake A100", 40_960 * 2**20, 40_000 * 2**20)
    assert (found["driver"], found["cuda"], found["why"]) == (DRIVER, [12, 4], "")


def test_slices_are_devices_and_what_they_are_slices_of_is_none(fake_gpus: FakeGpus) -> None:
    """A place in which no slice was made is passed over; the others of the machine stay as they are."""
    gap = FakeGpu(uuid="-", parent=0, name="-")
    slices = [FakeGpu(uuid=uuid, parent=0, name="Fake A100 MIG 3g.20gb", total=20_000) for uuid in SLICES]
    fake_gpus.show([*three(), slices[0], gap, slices[1]])
    fake_gpus.state.write_text(fake_gpus.state.read_text().replace("mig 0 - - 40960 40000 - 0", "mig 0 -"))
    found = fake_gpus.ask(FOUND)["gpus"]
    assert [(each["uuid"], each["index"], each["minor"], each["instances"]) for each in found] == [
        (SLICES[0], "0:0", 1, [1, 0]),
        (SLICES[1], "0:2", 1, [3, 0]),
        (UUIDS[1], "1", 2, None),
        (UUIDS[2], "2", 0, None),
    ]


def test_a_gpu_in_mig_mode_without_slices_is_told_as_that(fake_gpus: FakeGpus) -> None:
    """It is no device that anybody could have, and whoever looks for it learns why."""
    fake_gpus.show(three()[:1])
    with fake_gpus.state.open("a") as file:
        file.write("mig 0 -\n")
    found = fake_gpus.ask(FOUND)
    assert [each["problem"] for each in found["gpus"]] == ["it is in MIG mode and has no slices"]
    assert found["why"] == f"{UUIDS[0]}: it is in MIG mode and has no slices"


def test_an_error_on_one_device_leaves_the_others(fake_gpus: FakeGpus) -> None:
    """A lost device is unusable and says why."""
    broken = three()
    broken[1] = replace(broken[1], error=15)
    fake_gpus.show(broken)
    problems = [each["problem"] for each in fake_gpus.ask(FOUND)["gpus"]]
    assert problems == ["", "the NVIDIA driver says: GPU is lost", ""]


def test_a_device_without_memory_of_its_own_has_the_machines(fake_gpus: FakeGpus) -> None:
    """NVML answers that it does not know such a thing there; that is no error."""
    not_supported = 3
    fake_gpus.show(three(error=not_supported))
    first = fake_gpus.ask(FOUND)["gpus"][0]
    assert first["problem"] == ""
    assert first["total_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > first["free_bytes"] > 0


@pytest.mark.parametrize(
    ("init", "why"),
    [
        (0, "the driver shows none"),
        (18, "the NVIDIA driver says: RM has detected an NVML/RM version mismatch"),
        (None, "the NVIDIA driver is not loaded"),
    ],
)
def test_no_device_has_a_reason(fake_gpus: FakeGpus, init: int | None, why: str) -> None:
    """Whatever the driver answers is one line for people, never a traceback."""
    if init is None:
        fake_gpus.unload()
    else:
        fake_gpus.show([], init=init)
    found = fake_gpus.ask(FOUND)
    assert (found["gpus"], found["why"]) == ([], why)


def test_without_a_driver_there_is_no_library(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    """Most machines have none."""
    fake_gpus.libraries = replace(fake_gpus.libraries, nvml=tmp_path / "nowhere")
    found = fake_gpus.ask(FOUND)
    if not found["gpus"]:  # a machine may have a real one
        assert found["why"] == "no NVIDIA driver is installed: there is no libnvidia-ml.so.1"


def test_processes_on_a_device_are_named(fake_gpus: FakeGpus) -> None:
    """Who has memory on a device, as far as this machine can see; and how much, as far as the driver tells."""
    fake_gpus.show(three(processes=[(os.getpid(), 3277), (2**22 + 1, None)]))
    seen = [GpuProcess(**each) for each in fake_gpus.ask(FOUND)["gpus"][0]["processes"]]
    comm = Path("/proc/self/comm").read_text().strip()
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert [str(each) for each in seen] == [
        f"process {os.getpid()} ({comm}) of {user}, 3.2 GiB",
        f"process {2**22 + 1} (not visible here) of somebody",
    ]


def test_what_is_below_our_processes_is_not_foreign() -> None:
    """By ancestors, however deep; what is beside them is foreign."""
    grandchild = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", grandchild]) as child, subprocess.Popen(["sleep", "60"]) as other:
        try:
            below = _wait_for_child(child.pid)
            mine, foreigner = (GpuProcess(pid=pid, name="n", user="u", used_bytes=2**30) for pid in (below, other.pid))
            gpu = Gpu(uuid="GPU-1", name="A", index="0", minor=0, processes=(mine, foreigner))
            own = Own(roots=[child.pid])
            assert foreign(gpu, own) == f"process {other.pid} (n) of u, 1.0 GiB"
            assert as_device(gpu, "", own).foreign == foreign(gpu, own)
            assert as_device(gpu, "run 1 of ada", own).foreign == ""
            assert foreign(gpu, Own(roots=[os.getpid()])) == ""
        finally:
            os.kill(below, signal.SIGKILL)
            other.kill()


def test_a_process_that_has_ended_is_not_foreign() -> None:
    """The driver may name it for a moment longer. From inside a process namespace it might also be one outside."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    gone = GpuProcess(pid=ended.pid, name="n", user="u", used_bytes=None)
    gpu = Gpu(uuid="GPU-1", name="A", index="0", minor=0, processes=(gone,))
    sees_all = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC
    assert foreign(gpu, Own()) == ("" if sees_all else f"process {ended.pid} (n) of u")


def _wait_for_child(pid: int) -> int:
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "sleep\n":
            return int(children[0])


# -- leases ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    """Leases in a folder of their own."""
    return Leases(tmp_path)


def test_a_lease_is_all_or_nothing(leases: Leases) -> None:
    """Who cannot have one of two devices keeps neither."""
    other = Leases(leases.folder)
    first = leases.try_take(["GPU-b"], "run-1")
    assert first
    assert other.try_take(["GPU-a", "GPU-b"], "run-2") is None
    assert (leases.held_by("GPU-a"), leases.held_by("GPU-b"), other.held_by("GPU-b")) == ("", "", _by("run-1"))
    first.close()
    first.close()
    both = other.try_take(["GPU-b", "GPU-a"], "run-2")
    assert both
    assert both.uuids == ("GPU-a", "GPU-b")
    assert leases.held_by("GPU-a") == _by("run-2")
    both.close()
    assert leases.held_by("GPU-a") == ""


def _by(run: str) -> str:
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    return f"run {run} of {user}"


def test_death_gives_a_lease_back_and_tells_who_waits(fake_gpus: FakeGpus) -> None:
    """Another process is told who has it; SIGKILL is enough to free it, and nobody polls for that."""
    holder = fake_gpus.start(TAKE, f"{UUIDS[0]},{UUIDS[1]}", "20260101-000000-0001")
    assert holder.stdout
    assert json.loads(holder.stdout.readline()) == sorted(UUIDS[:2])
    here = Leases(fake_gpus.leases)
    assert here.try_take(UUIDS[1:], "mine") is None
    assert here.held_by(UUIDS[1]) == _by("20260101-000000-0001")

    async def wait() -> None:
        cancelled = asyncio.ensure_future(here.wait_released(UUIDS[:2]))
        waiting = asyncio.ensure_future(here.wait_released(UUIDS[:2]))
        done, _ = await asyncio.wait({cancelled, waiting}, timeout=0.2)
        assert not done
        cancelled.cancel()
        holder.kill()
        await asyncio.wait_for(waiting, 60)
        assert cancelled.cancelled()

    asyncio.run(wait())
    holder.communicate()
    lease = here.try_take(UUIDS, "mine")
    assert lease
    lease.close()


def test_of_many_processes_no_two_have_one_device(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    """Five take one of three, eight times each, and wait where all are taken: never two at a time, and all get on."""
    log = tmp_path / "log"
    log.touch()
    processes = [fake_gpus.start(CONTEND, ",".join(UUIDS), str(log)) for _ in range(5)]
    assert [each.communicate(timeout=300)[0].strip() for each in processes] == ['"done"'] * 5
    held: set[str] = set()
    used: set[str] = set()
    for line in log.read_text().splitlines():
        sign, uuid = line.split()
        assert (uuid in held) == (sign == "-"), log.read_text()
        (held.add if sign == "+" else held.remove)(uuid)
        used.add(uuid)
    assert log.read_text().count("+") == 5 * 8
    assert used == set(UUIDS)


def test_a_free_device_is_not_waited_for(leases: Leases) -> None:
    """Whether anybody ever had it or not."""
    lease = leases.try_take(["GPU-a"], "r")
    assert lease
    lease.close()
    asyncio.run(asyncio.wait_for(leases.wait_released(["GPU-a"]), 60))
    asyncio.run(asyncio.wait_for(leases.wait_released(["GPU-new"]), 60))


def test_a_forked_child_does_not_keep_a_lease(leases: Leases) -> None:
    """A script may fork workers that outlive the run which it started."""
    lease = leases.try_take(["GPU-a"], "r")
    assert lease
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.send(b"forked")
        theirs.recv(1)
        os._exit(0)
    with ours, theirs:
        theirs.close()
        assert ours.recv(6) == b"forked"
        opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert not any("run-local-gpu" in path for path in opened)
        assert Leases(leases.folder).held_by("GPU-a") == _by("r")
        lease.close()
        assert Leases(leases.folder).held_by("GPU-a") == ""
    os.waitpid(pid, 0)


def test_who_only_looks_is_in_nobodys_way(leases: Leases) -> None:
    """While others look all the time, a device that nobody has can be taken."""
    ended = threading.Event()

    def look() -> None:
        other = Leases(leases.folder)
        while not ended.is_set():
            other.held_by("GPU-a")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for each in lookers:
        each.start()
    try:
        for _ in range(20):
            lease = leases.try_take(["GPU-a"], "r")
            assert lease
            lease.close()
    finally:
        ended.set()
        for each in lookers:
            each.join()


def test_a_file_of_a_lease_is_open_to_all_whatever_the_umask(leases: Leases) -> None:
    """Another user must be able to lock it, and to sign it."""
    before = os.umask(0o077)
    try:
        lease = leases.try_take(["GPU-a"], "r")
    finally:
        os.umask(before)
    assert lease
    lease.close()
    assert [path.stat().st_mode & 0o777 for path in leases.folder.glob("run-local-gpu-*")] == [0o666]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_users_lease_from_each_other() -> None:
    """In a folder as /run/lock is, where the kernel refuses much of what another user could have prepared."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="rl-leases-"))
    folder.chmod(0o1777)
    try:
        mine = Leases(folder).try_take(["GPU-a"], "roots")
        assert mine
        assert _as_nobody(folder, "GPU-a") == ["taken: no", f"held by: {_by('roots')}"]
        mine.close()
        assert _as_nobody(folder, "GPU-a") == ["taken: yes", "held by: "]
        assert _as_nobody(folder, "GPU-b") == ["taken: yes", "held by: "]
        theirs = Leases(folder).try_take(["GPU-a", "GPU-b"], "roots")
        assert theirs
        theirs.close()
        (folder / "run-local-gpu-GPU-a.lock").chmod(0o600)
        [refused] = _as_nobody(folder, "GPU-a")
        assert refused == f"`{folder}/run-local-gpu-GPU-a.lock`, made by root: Permission denied"
    finally:
        shutil.rmtree(folder)


def _as_nobody(folder: Path, uuid: str) -> list[str]:
    """What comes of it when another user tries to take a device."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            leases = Leases(folder)
            try:
                lease = leases.try_take([uuid], "theirs")
                told = f"taken: {'yes' if lease else 'no'}\nheld by: {leases.held_by(uuid)}"
            except MachineError as exc:
                told = exc.why
            os.write(writer, told.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told.split("\n")


@pytest.mark.parametrize("trap", ["link", "hard link", "fifo", "folder"])
def test_what_somebody_prepared_is_not_written_to(leases: Leases, tmp_path: Path, trap: str) -> None:
    """In a folder that everybody can write to, a name may be anything."""
    victim, name = tmp_path / "victim", tmp_path / "run-local-gpu-GPU-a.lock"
    victim.write_text("precious")
    if trap == "link":
        name.symlink_to(victim)
    elif trap == "hard link":
        name.hardlink_to(victim)
    elif trap == "fifo":
        os.mkfifo(name)
    else:
        name.mkdir()
    with pytest.raises(MachineError, match="GPU-a cannot be leased") as refused:
        leases.try_take(["GPU-a"], "r")
    assert str(name) in refused.value.why
    assert str(name) in leases.held_by("GPU-a")
    assert victim.read_text() == "precious"


def test_nonsense_in_a_lease_is_not_passed_on(leases: Leases) -> None:
    """What is written there comes from another user: no escape sequence of it reaches a terminal."""
    lease = leases.try_take(["GPU-a"], "\x1b[2Jrun")
    assert lease
    other = Leases(leases.folder)
    assert other.held_by("GPU-a") == _by("?" + "?2Jrun")
    next(leases.folder.glob("run-local-gpu-*")).write_text("[1]")
    assert other.held_by("GPU-a") == "another run"
    lease.close()


# -- ways into a slot --------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A slot with one device, of an environment that does not exist."""
    return Launch(
        run="20260101-000000-0000", number=1, environment="leaf", specification="s", key="k", image="i",
        prefix=tmp_path / "prefix", shape=SHAPE, project=tmp_path, import_roots=(".",), library=tmp_path,
        folder=tmp_path / "slots" / "1", lease=tmp_path / "lease", variables={},
        gpus=(Gpu(uuid=UUIDS[0], name="Fake", index="0", minor=1),),
    )  # fmt: skip


def _asked(launch: Launch, passed: Passed | str) -> dict[str, Any]:
    """The body that docker's SDK makes of a plan, as far as GPUs are concerned."""
    assert isinstance(passed, Passed)
    door: Any = type("Door", (), {"folder": Path("/ctl"), "nonce": "n"})
    asked = docker.plan(launch, door, passed=passing.prepare(passed, launch))
    host = HostConfig(version="1.41", **asked["host_config"])
    about = re.compile("NVIDIA_|CUDA_|LD_")
    return {
        **{name: host[name] for name in ("DeviceRequests", "Runtime", "Devices") if host.get(name)},
        "env": {name: text for name, text in asked["environment"].items() if about.match(name)},
    }


def _specify(folder: Path, devices: Sequence[str], name: str = "nvidia.json", kind: str = "nvidia.com/gpu") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": [{"name": d} for d in devices]})
    )


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["0", UUIDS[0], "all"], UUIDS[0]), (["0", "1", "all"], "0"), (["gpu0", "gpu1"], "gpu0")],
)
def test_cdi_asks_by_the_name_in_the_specification(
    launch: Launch, tmp_path: Path, names: list[str], chosen: str
) -> None:
    """By UUID where it has that, or else by index: the agent then sees whether that was still the right one."""
    _specify(tmp_path / "cdi", names)
    offered = passing.offer({"CDISpecDirs": [str(tmp_path / "cdi")], "Runtimes": {"runc": {}}}, podman=False)
    assert _asked(launch, passing.by_cdi(launch.gpus, offered, Driver())) == {
        "DeviceRequests": [
            {"Driver": "cdi", "Count": 0, "DeviceIDs": [f"nvidia.com/gpu={chosen}"], "Capabilities": [], "Options": {}}
        ],
        "env": {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    }


def test_cdi_is_refused_where_nothing_specifies_the_device(launch: Launch, tmp_path: Path) -> None:
    """No folder, no specification, one of something else, one that cannot be read."""
    folder = tmp_path / "cdi"
    assert passing.by_cdi(launch.gpus, NO_TOOLKIT, Driver()) == "the engine does not offer it"
    _specify(folder, ["0"], kind="vendor.com/net")
    (folder / "broken.yaml").write_text("kind: [")
    said = passing.by_cdi(launch.gpus, Offer(cdi=(folder,), runtimes=frozenset()), Driver())
    assert isinstance(said, str)
    assert said.startswith(
        f"no specification of `nvidia.com/gpu` in {folder} has {UUIDS[0]}; {folder}/broken.yaml cannot"
    )


def test_podman_looks_where_everybody_does() -> None:
    """It offers CDI and does not say so."""
    assert passing.offer({}, podman=True).cdi == (Path("/etc/cdi"), Path("/var/run/cdi"))
    assert passing.offer({"CDISpecDirs": None}, podman=False).cdi == ()


def test_the_toolkit_is_asked_by_uuid(launch: Launch) -> None:
    """As a device request, and as a runtime where there is one."""
    toolkit = {
        "NVIDIA_VISIBLE_DEVICES": UUIDS[0],
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert _asked(launch, passing.by_device_request(launch.gpus, NO_TOOLKIT, Driver())) == {
        "DeviceRequests": [
            {
                "Driver": "",
                "Count": 0,
                "DeviceIDs": [UUIDS[0]],
                "Capabilities": [["gpu", "compute", "utility"]],
                "Options": {},
            }
        ],
        "env": toolkit,
    }
    has_it = passing.offer({"Runtimes": {"runc": {}, "nvidia": {}}}, podman=False)
    assert _asked(launch, passing.by_nvidia_runtime(launch.gpus, has_it, Driver())) == {
        "Runtime": "nvidia",
        "env": toolkit,
    }
    assert passing.by_nvidia_runtime(launch.gpus, NO_TOOLKIT, Driver()) == "the engine has no runtime of that name"


def test_a_cpu_slot_asks_for_none_and_hides_all(launch: Launch, fake_gpus: FakeGpus) -> None:
    """Under an engine whose default runtime is NVIDIA's it would be given all of them, as images of CUDA ask for that."""
    launch = replace(launch, gpus=())
    hidden = {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}
    assert _asked(launch, passing.NOTHING) == {"env": hidden}
    assert passing.into_process(launch, Driver(root=fake_gpus.root)).variables == hidden


def test_device_nodes_come_with_the_libraries_of_the_loaded_driver(launch: Launch, fake_gpus: FakeGpus) -> None:
    """By minor number, which is not the index; another version's libraries, and those for pictures, stay out."""
    folder = next(fake_gpus.root.glob("usr/lib/*-linux-gnu"))
    for name in ("libnvidia-ml", "libnvidia-nvvm", "libGLX_nvidia"):
        (folder / f"{name}.so.{DRIVER}").touch()
    (folder / "libcuda.so.535.1.1").touch()
    for link, target in {
        "libcuda.so.1": "libcuda.so.535.1.1", "libnvidia-ml.so.1": f"libnvidia-ml.so.{DRIVER}",
        "libnvidia-nvvm.so.4": f"libnvidia-nvvm.so.{DRIVER}", "libnvidia-nvvm.so": "libnvidia-nvvm.so.4",
    }.items():  # fmt: skip
        (folder / link).symlink_to(target)
    driver = Driver(root=fake_gpus.root)
    assert driver.version() == DRIVER
    launch = replace(launch, variables={"LD_LIBRARY_PATH": "/opt/env/lib"})
    passed = passing.by_device_nodes(launch.gpus, NO_TOOLKIT, driver)
    assert _asked(launch, passed) == {
        "Devices": [
            {"PathOnHost": "/dev/null", "PathInContainer": f"/dev/{name}", "CgroupPermissions": "rw"}
            for name in ("nvidiactl", "nvidia-uvm", "nvidia1", "nvidia-uvm-tools")
        ],
        "env": {
            "NVIDIA_VISIBLE_DEVICES": "void",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "LD_LIBRARY_PATH": "/opt/env/lib:/usr/local/nvidia/lib64",
        },
    }
    made = launch.folder / "driver"
    assert {path.name: str(path.readlink()) for path in made.iterdir() if path.is_symlink()} == {
        "libcuda.so": f"libcuda.so.{DRIVER}",
        "libcuda.so.1": f"libcuda.so.{DRIVER}",
        "libnvidia-ml.so.1": f"libnvidia-ml.so.{DRIVER}",
        "libnvidia-nvvm.so": f"libnvidia-nvvm.so.{DRIVER}",
        "libnvidia-nvvm.so.4": f"libnvidia-nvvm.so.{DRIVER}",
    }
    assert {path.name for path in made.iterdir() if path.is_file() and not path.is_symlink()} == {
        f"{name}.so.{DRIVER}" for name in ("libcuda", "libnvidia-ml", "libnvidia-nvvm")
    }


def test_a_slice_brings_the_nodes_of_its_parts(launch: Launch, fake_gpus: FakeGpus) -> None:
    """Its GPU's node, and what the driver has for its GPU instance and its compute instance."""
    cut = Gpu(uuid=SLICES[1], name="Fake MIG", index="0:1", minor=1, instances=(2, 0))
    passed = passing.by_device_nodes([cut], NO_TOOLKIT, Driver(root=fake_gpus.root))
    assert isinstance(passed, Passed)
    nodes = [each.split(":")[1].removeprefix("/dev/") for each in passed.host["devices"]]
    caps = ["nvidia-caps/nvidia-cap39", "nvidia-caps/nvidia-cap40"]
    assert nodes == ["nvidiactl", "nvidia-uvm", "nvidia1", *caps, "nvidia-uvm-tools"]
    unknown = replace(cut, instances=(5, 0))
    said = passing.by_device_nodes([unknown], NO_TOOLKIT, Driver(root=fake_gpus.root))
    assert said == f"the driver names no device node for gpu1/gi5/access of {SLICES[1]}"


@pytest.mark.parametrize("lacking", ["node", "uvm", "library"])
def test_device_nodes_are_refused_with_what_is_lacking(launch: Launch, fake_gpus: FakeGpus, lacking: str) -> None:
    """Each of them by its path, and what makes it."""
    if lacking == "library":
        next(fake_gpus.root.glob("usr/lib/*/libcuda.so.*")).unlink()
        expected = f"no libcuda of the driver's version ({DRIVER}) is on this machine"
    else:
        missing = fake_gpus.root / "dev" / ("nvidia-uvm" if lacking == "uvm" else "nvidia1")
        missing.unlink()
        expected = f"{missing} is not there" + " (`nvidia-modprobe -u -c 0` makes that one)" * (lacking == "uvm")
    assert passing.by_device_nodes(launch.gpus, NO_TOOLKIT, Driver(root=fake_gpus.root)) == expected


def test_a_slot_must_see_exactly_what_it_was_given(launch: Launch) -> None:
    """Neither more, nor another, nor an excuse; and a CPU slot in a container none at all."""

    def broken(seen: Sequence[str], problem: str = "", launch: Launch = launch) -> list[str]:
        hello = {"gpus": {"nodes": ["nvidia0"], "seen": seen, "problem": problem}}
        return passing.broken_promises(launch, hello, own_dev=True)

    mine, other = UUIDS[0].removeprefix("GPU-"), UUIDS[1].removeprefix("GPU-")
    assert broken([mine]) == []
    assert broken([mine, other]) == [f"it was given {UUIDS[0]}, and CUDA shows {mine}, {other}"]
    assert broken([other]) == [f"it was given {UUIDS[0]}, and CUDA shows {other}"]
    assert broken([], "no libcuda") == ["no libcuda"]
    bare = replace(launch, gpus=())
    assert broken([], launch=bare) == ["GPUs can be seen that it did not ask for (nvidia0)"]
    hello = {"gpus": {"nodes": ["nvidia0"], "seen": [], "problem": ""}}
    assert passing.broken_promises(bare, hello, own_dev=False) == []


@pytest.mark.parametrize("visible", [f"{UUIDS[2]},{UUIDS[0]}", ""])
def test_the_agent_asks_the_driver_in_a_child(fake_gpus: FakeGpus, tmp_path: Path, visible: str) -> None:
    """What CUDA shows, in the order in which it does; the asking process itself never starts CUDA."""
    (tmp_path / "libcuda.so.1").symlink_to(fake_gpus.libraries.cuda)
    fake_gpus.libraries = replace(fake_gpus.libraries, nvml=tmp_path)
    code = f"""
from executor.worker.gpus import look
os.environ["CUDA_VISIBLE_DEVICES"] = {visible!r}
print(json.dumps([look(["GPU-x"]), "libcuda" in open("/proc/self/maps").read()]))
"""
    answer, loaded = fake_gpus.ask(code)
    assert not loaded
    if visible:
        assert (answer["seen"], answer["problem"]) == ([uuid[4:] for uuid in (UUIDS[2], UUIDS[0])], "")
    else:
        assert answer["problem"].startswith("cuInit of the driver answers CUDA_ERROR_NO_DEVICE")


def test_the_agent_outlives_a_driver_that_crashes(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    """A library that takes its process down takes a child down."""
    source = tmp_path / "crash.c"
    source.write_text(
        '#include <stdlib.h>\n__attribute__((visibility("default"))) int cuInit(unsigned f) { abort(); }\n'
    )
    compile_library(source, tmp_path / "libcuda.so.1", "libcuda.so.1")
    fake_gpus.libraries = replace(fake_gpus.libraries, nvml=tmp_path)
    answer = fake_gpus.ask('from executor.worker.gpus import look\nprint(json.dumps(look(["GPU-x"])))')
    assert answer["problem"].startswith(f"the driver was asked, and it died of signal {signal.SIGABRT:d}")


def test_the_agent_leaves_the_driver_alone_where_no_gpu_is_asked_for() -> None:
    """A CPU slot starts no slower for it."""
    assert inside.look([])["seen"] == []
    assert inside.look([])["problem"] == ""


def test_the_computation_of_the_tests_for_real_gpus_is_one(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    """Most machines cannot run those; its program at least makes its calls in a way that gives the numbers back."""
    (tmp_path / "libcuda.so.1").symlink_to(fake_gpus.libraries.cuda)
    fake_gpus.libraries = replace(fake_gpus.libraries, nvml=tmp_path)
    code = f"""
os.environ["CUDA_VISIBLE_DEVICES"] = {UUIDS[1]!r}
from tests.gpu.compute import compute
print(json.dumps(compute()))
"""
    told = fake_gpus.ask(code)
    assert (told["devices"], told["uuid"]) == (1, UUIDS[1].removeprefix("GPU-"))
    assert told["numbers"] == [7 * place for place in range(256)]


# -- locks and the command ---------------------------------------------------------------------------------------------


def _lock(*packages: tuple[str, str, str]) -> Lock:
    made = [
        Package(name=name, version=version, manager=manager, url="", sha256="", md5=None, depends=())
        for manager, name, version in packages
    ]
    return Lock(path=Path("conda-lock.yml"), packages=tuple(made), bridge=False, spec="", asked=())


@pytest.mark.parametrize(
    ("package", "cuda"),
    [
        (("conda", "cuda-version", "12.6"), (12, 6)),
        (("conda", "cudatoolkit", "11.8.0"), (11, 8)),
        (("pip", "nvidia-cuda-runtime-cu12", "12.4.127"), (12, 4)),
        (("pip", "nvidia-cuda-runtime", "13.0.48"), (13, 0)),
        (("pip", "torch", "2.3.0+cu121"), (12, 1)),
        (("pip", "cudatoolkit", "11.8.0"), None),
        (("pip", "nvidia-cuda-nvrtc-cu12", "12.4.127"), None),
        (("conda", "numpy", "2.0"), None),
    ],
)
def test_the_cuda_of_a_lock(package: tuple[str, str, str], cuda: tuple[int, int] | None) -> None:
    """By the packages that are CUDA's runtime, from either kind of channel."""
    found = cuda_of(_lock(("conda", "python", "3.11.7"), package))
    assert (found and found[0]) == cuda


def test_a_newer_cuda_than_the_drivers_is_told() -> None:
    """Both versions are named; within one major version most of it works all the same, and that is said."""
    lock = _lock(("pip", "nvidia-cuda-runtime-cu12", "12.6.77"), ("conda", "cuda-version", "12.4"))
    assert driver_complaint(lock, (12, 6)) == ""
    assert driver_complaint(lock, (12, 4)) == (
        "it brings CUDA 12.6 (`nvidia-cuda-runtime-cu12 12.6.77`), and the driver of this machine supports CUDA 12.4: "
        "what has to be compiled for the device first (PTX) will fail"
    )
    assert driver_complaint(lock, (11, 8)) == (
        "it brings CUDA 12.6 (`nvidia-cuda-runtime-cu12 12.6.77`), and the driver of this machine supports CUDA 11.8: "
        "no GPU will work in it until the driver is newer"
    )
    assert driver_complaint(_lock(("conda", "python", "3.11.7")), (11, 8)) == ""


SAMPLED = """
from executor.sampling import Sampler
sampler = Sampler(0.01)
def until(call, many):
    while sampler._calls[call][sys.argv[1]].samples < many: time.sleep(0.005)
sampler.begin("1", sys.argv[1:3])
sampler.begin("2", ["GPU-of-nobody"])
until("1", 3)
print("seen", flush=True)
sys.stdin.readline()
gpus.discover()  # which makes the library read its file again
until("1", sampler._calls["1"][sys.argv[1]].samples + 2)
told = [sampler.end("1"), sampler.end("2"), sampler.end("3")]
while sampler._thread: time.sleep(0.005)
sampler.begin("4", sys.argv[1:2])
until("4", 1)
print(json.dumps([*told, sampler.end("4")]))
"""


def test_devices_are_sampled_while_calls_have_them(fake_gpus: FakeGpus) -> None:
    """The most memory that was in use, how busy each was on the average, from when a call had it until it had not."""
    fake_gpus.show(three(free=40_000), busy=0)
    process = fake_gpus.start(SAMPLED, UUIDS[0], UUIDS[1])
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == "seen\n"
    fake_gpus.show(three(free=30_000), busy=100)
    one, nobodys, none, later = json.loads(process.communicate("\n", timeout=60)[0])
    assert (set(one), nobodys, none) == ({UUIDS[0], UUIDS[1]}, {}, {})
    assert one[UUIDS[0]]["peak_bytes"] == (40_960 - 30_000) * 2**20
    assert one[UUIDS[0]]["samples"] >= 5
    assert 0 < one[UUIDS[0]]["utilisation"] < 1
    assert later[UUIDS[0]]["utilisation"] == 1


def test_a_device_that_does_not_tell_how_busy_it_is(fake_gpus: FakeGpus) -> None:
    """A slice, or an old driver: the memory is told all the same; and without a driver nothing is."""
    code = """
with gpus.watched() as look:
    seen = [look(uuid) for uuid in sys.argv[1:]]
print(json.dumps([each and (each.used_bytes, each.percent) for each in seen]))
"""
    assert fake_gpus.ask(code, UUIDS[0], "GPU-of-nobody") == [[960 * 2**20, None], None]
    fake_gpus.unload()
    assert fake_gpus.ask(code, UUIDS[0]) == [None]
