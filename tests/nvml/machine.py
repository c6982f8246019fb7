"""A machine with GPUs that are not there: NVML, libcuda, device nodes and a folder for leases, for real processes to find.

`FakeGpus.variables` make any process see it: `run_local(…, env=gpus.variables)`. The real bindings load the libraries by
name, so nothing in run-local is replaced; see nvml.c and cuda.c beside this for what they answer.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DRIVER = "550.54.14"

#: Three devices whose order by UUID, by minor number and by NVML's index differ.
THREE = (
    ("GPU-cccccccc-0000-4000-8000-000000000001", 1),
    ("GPU-aaaaaaaa-0000-4000-8000-000000000002", 2),
    ("GPU-bbbbbbbb-0000-4000-8000-000000000000", 0),
)
UUIDS = tuple(uuid for uuid, _ in THREE)
#: What the library of CUDA knows beside them, so that slices of the device with minor number 1 can be shown.
SLICES = ("MIG-11111111-0000-5000-8000-000000000001", "MIG-22222222-0000-5000-8000-000000000001")


@dataclass(frozen=True, kw_only=True)
class FakeGpu:
    """One line of NVML's file. parent: the index of the GPU that it is a slice of; sizes in MiB, see nvml.c."""

    uuid: str
    minor: int = 0
    name: str = "Fake A100"
    total: int = 40_960
    free: int = 40_000
    processes: Sequence[tuple[int, int | None]] = ()
    error: int = 0
    parent: int | None = None

    def line(self) -> str:
        """How nvml.c reads it."""
        name = self.name.replace(" ", "_")
        processes = ",".join(f"{pid}:{'?' if used is None else used}" for pid, used in self.processes) or "-"
        kind = (
            f"gpu {self.uuid} {name} {self.minor}" if self.parent is None else f"mig {self.parent} {self.uuid} {name}"
        )
        return f"{kind} {self.total} {self.free} {processes} {self.error}"


def three(**changes: Any) -> list[FakeGpu]:
    """The three devices, all alike but for their names."""
    return [FakeGpu(uuid=uuid, minor=minor, **changes) for uuid, minor in THREE]


def compile_library(source: Path, target: Path, soname: str, *options: str) -> Path:
    """Compile a shared library with the C compiler of this machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-fvisibility=hidden", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{soname}"]
    subprocess.run([*command, *options, "-o", target, source], check=True)
    return target


def compile_nvml(folder: Path) -> Path:
    """A folder with a libnvidia-ml.so.1 in it."""
    compile_library(HERE / "nvml.c", folder / "libnvidia-ml.so.1", "libnvidia-ml.so.1")
    return folder


def compile_cuda(target: Path, devices: Iterable[tuple[str, int]]) -> Path:
    """A libcuda that knows these devices: UUID, minor number."""
    table = []
    for uuid, minor in devices:
        digits = uuid.partition("-")[2].replace("-", "")
        octets = ",".join(f"0x{digits[at : at + 2]}" for at in range(0, 32, 2))
        table.append(f"{{{minor},{{{octets}}}}}")
    return compile_library(HERE / "cuda.c", target, "libcuda.so.1", f"-DDEVICES={','.join(table)}")


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """What was compiled, once for a session."""

    nvml: Path
    cuda: Path


@dataclass
class FakeGpus:
    """A machine as a test wants it; `show` says what NVML answers from now on, `unload` takes the driver away."""

    libraries: Libraries
    folder: Path
    state: Path = field(init=False)
    root: Path = field(init=False)
    leases: Path = field(init=False)

    def __post_init__(self) -> None:
        self.state, self.root, self.leases = (self.folder / name for name in ("nvml", "root", "leases"))
        self.leases.mkdir(parents=True)
        self.leases.chmod(0o1777)
        self._write_root()
        self.show(three())

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to see this machine."""
        return {
            "LD_LIBRARY_PATH": str(self.libraries.nvml),
            "FAKE_NVML": str(self.state),
            "RUN_LOCAL_DRIVER_ROOT": str(self.root),
            "RUN_LOCAL_GPU_LEASES": str(self.leases),
        }

    def show(self, gpus: Iterable[FakeGpu], *, cuda: int = 12040, init: int = 0, busy: int | None = None) -> None:
        """Let NVML answer with these devices, `busy` percent of the time, or fail with the error `init`."""
        told = [] if busy is None else [f"busy {busy}"]
        lines = [f"driver {DRIVER} {cuda}", f"init {init}", *told, *(gpu.line() for gpu in gpus)]
        fresh = self.state.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(self.state)

    def unload(self) -> None:
        """Let NVML say that no driver is loaded."""
        self.state.unlink()

    def ask(self, code: str, *arguments: str) -> Any:
        """What a new Python on this machine prints as JSON; `gpus` is `executor.gpus` there."""
        return json.loads(self.start(code, *arguments).communicate()[0])

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python on this machine, for tests that talk to it or kill it."""
        program = f"import json, os, sys, time\nfrom executor import gpus\n{code}"
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, **self.variables},
            cwd=HERE.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _write_root(self) -> None:
        """The device nodes, all of them `/dev/null`, and the driver's files, beside some that are of no use."""
        (self.root / "dev/nvidia-caps").mkdir(parents=True)
        nodes = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", *(f"nvidia{minor}" for _, minor in THREE)]
        for name in [*nodes, *(f"nvidia-caps/nvidia-cap{number}" for number in (1, 30, 31, 39, 40))]:
            (self.root / "dev" / name).symlink_to("/dev/null")
        (self.root / "proc/driver/nvidia").mkdir(parents=True)
        (self.root / "proc/driver/nvidia/version").write_text(
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  Release Build\nGCC version: gcc\n"
        )
        (self.root / "proc/driver/nvidia-caps").mkdir()
        (self.root / "proc/driver/nvidia-caps/mig-minors").write_text(
            "config 1\nmonitor 2\n"
            + "".join(
                f"gpu{gpu}/gi{instance}/access {30 + 9 * (instance - 1)}\n"
                f"gpu{gpu}/gi{instance}/ci0/access {31 + 9 * (instance - 1)}\n"
                for gpu in (1,)
                for instance in (1, 2)
            )
        )
        folder = self.root / f"usr/lib/{platform.machine()}-linux-gnu"
        folder.mkdir(parents=True)
        (folder / f"libcuda.so.{DRIVER}").symlink_to(self.libraries.cuda)
