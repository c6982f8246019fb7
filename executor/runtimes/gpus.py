"""How GPUs get into a slot, and how we know that they did.

The ways into a container, best first, which `WAYS` lists:

    CDI             the engine applies NVIDIA's specification of the device
    device request  what `docker run --gpus` asks for: NVIDIA's toolkit is hooked into the engine
    nvidia runtime  NVIDIA's toolkit is a runtime of the engine, and reads a variable
    device nodes    without the toolkit: the nodes of the devices, and the driver's libraries, from this machine

Whether a way works cannot be known beforehand: engines ignore what they do not know, and without the toolkit some of it
means nothing. So the first slot of a run that has GPUs tries the ways in this order, and the first one is kept whose
agent sees from inside that exactly the asked-for devices answer (`worker.gpus`). A CPU slot is given none, whatever the
engine's default runtime is.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from executor.errors import MachineError
from executor.gpus import Gpu, discover
from executor.runtimes import Launch

DRIVER_ROOT_VARIABLE = "RUN_LOCAL_DRIVER_ROOT"
LIBRARIES = "/usr/local/nvidia/lib64"

#: What libnvidia-container passes for `compute` and `utility`; a driver has only some of them.
_COMPUTE = (
    "libcuda", "libcudadebugger", "libnvidia-opencl", "libnvidia-gpucomp", "libnvidia-ptxjitcompiler",
    "libnvidia-fatbinaryloader", "libnvidia-allocator", "libnvidia-compiler", "libnvidia-pkcs11",
    "libnvidia-pkcs11-openssl3", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-tileiras",
)  # fmt: skip
_UTILITY = ("libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq")

_NODES = ("nvidiactl", "nvidia-uvm")
_OPTIONAL_NODES = ("nvidia-uvm-tools", "nvidia-modeset")
_CDI_KIND = "nvidia.com/gpu"
_CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_CDI_FILES = frozenset({".json", ".yaml", ".yml"})
_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_NO_GPU = {"NVIDIA_VISIBLE_DEVICES": "void"}  # for NVIDIA's runtime, where that is an engine's default


#: File name → the real path of a library, and the names that programs know it by.
Libraries = Mapping[str, tuple[Path, tuple[str, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a slot is given on top of what every slot gets.

    variables: of its environment
    host:      arguments of `create_host_config`
    libraries: of the driver, as `Driver.libraries` has them
    binds:     what shows them, made by `prepare`: path of this machine → path inside, in this order
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    libraries: Libraries = field(default_factory=dict)
    binds: tuple[tuple[Path, str], ...] = ()


#: What a slot without GPUs gets: two variables that keep it from seeing any.
NOTHING = Passed(variables={**_NO_GPU, "CUDA_VISIBLE_DEVICES": ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What an engine says of itself. cdi: the folders of its CDI specifications, or none; runtimes: their names."""

    cdi: tuple[Path, ...]
    runtimes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Where the files of the driver lie, as a container would lack them.

    root: `/`, or `$RUN_LOCAL_DRIVER_ROOT`, where the driver is itself in a container that shows its files there
    """

    root: Path = Path("/")

    @classmethod
    def here(cls) -> Driver:
        """The driver of this machine."""
        return cls(root=Path(os.environ.get(DRIVER_ROOT_VARIABLE) or "/"))

    def node(self, name: str) -> Path:
        """The path of a device node, whether it is there or not."""
        return self.root / "dev" / name

    def version(self) -> str:
        """The version of the loaded driver, such as `550.54.14`; empty where none is loaded."""
        for word in _read(self.root / "proc/driver/nvidia/version").partition("Kernel Module")[2].split():
            if word[0].isdigit():
                return word
        return discover().driver if self.root == Path("/") else ""

    def slice_node(self, access: str) -> str | None:
        """The device node that gives access to a part of a MIG slice, named as in `/proc/driver/nvidia-caps`."""
        for line in _read(self.root / "proc/driver/nvidia-caps/mig-minors").splitlines():
            name, _, minor = line.rpartition(" ")
            if name == access:
                return f"nvidia-caps/nvidia-cap{minor}"
        return None

    def libraries(self) -> Libraries:
        """The driver's libraries for computing.

        Only those of exactly the loaded driver's version: another one's, left by an update, would refuse to work.
        """
        version = self.version()
        wanted = {f"{name}.so.{version}" for name in (*_COMPUTE, *_UTILITY)} if version else set()
        found: dict[str, tuple[Path, set[str]]] = {}
        for path in self._named():
            real = Path(os.path.realpath(path))
            if real.name in wanted and real.is_file():
                found.setdefault(real.name, (real, set()))[1].add(path.name)
        for name, (_, names) in found.items():
            names |= {f"{name.partition('.so')[0]}.so.1"} if names == {name} else set()
            names |= {"libcuda.so"} if name.startswith("libcuda.so.") else set()
        return {name: (real, tuple(sorted(names - {name}))) for name, (real, names) in sorted(found.items())}

    def _named(self) -> Iterator[Path]:
        if self.root == Path("/"):
            yield from _linker_cache()
        arch = platform.machine()
        for folder in (f"usr/lib/{arch}-linux-gnu", "usr/lib64", "usr/lib", "usr/local/nvidia/lib64"):
            for below in ("", "nvidia/current"):
                yield from sorted((self.root / folder / below).glob("lib*.so*"))


def offer(info: Mapping[str, Any], *, podman: bool) -> Offer:
    """What an engine can do for GPUs, from its `/info`; Podman applies CDI without saying so there."""
    folders = tuple(map(Path, info.get("CDISpecDirs") or ()))
    return Offer(
        cdi=_CDI_FOLDERS if podman and not folders else folders, runtimes=frozenset(info.get("Runtimes") or ())
    )


def by_cdi(gpus: Sequence[Gpu], offered: Offer, driver: Driver) -> Passed | str:
    """CDI: the engine finds each device in a specification by the name that it has there."""
    del driver
    if not offered.cdi:
        return "the engine does not offer it"
    names, problems = _cdi_devices(offered.cdi)
    chosen = []
    for gpu in gpus:
        kind = "gpu" if gpu.instances is None else "mig"
        known = [name for name in (gpu.uuid, gpu.index, f"{kind}{gpu.index}") if name in names]
        if not known:
            folders = ", ".join(map(str, offered.cdi))
            return "; ".join([f"no specification of `{_CDI_KIND}` in {folders} has {gpu.uuid}", *problems])
        chosen.append(f"{_CDI_KIND}={known[0]}")
    return Passed(variables={**_NO_GPU, **_ORDER}, host={"device_requests": [{"driver": "cdi", "device_ids": chosen}]})


def by_device_request(gpus: Sequence[Gpu], offered: Offer, driver: Driver) -> Passed | str:
    """What `docker run --gpus` asks for; an engine without the toolkit refuses that when the container is started."""
    del offered, driver
    request = {"device_ids": _uuids(gpus), "capabilities": [["gpu", "compute", "utility"]]}
    return Passed(variables=_for_toolkit(gpus), host={"device_requests": [request]})


def by_nvidia_runtime(gpus: Sequence[Gpu], offered: Offer, driver: Driver) -> Passed | str:
    """NVIDIA's runtime, which reads a variable."""
    del driver
    if "nvidia" not in offered.runtimes:
        return "the engine has no runtime of that name"
    return Passed(variables=_for_toolkit(gpus), host={"runtime": "nvidia"})


def by_device_nodes(gpus: Sequence[Gpu], offered: Offer, driver: Driver) -> Passed | str:
    """The nodes and the driver's libraries, without anybody's help."""
    del offered
    wanted = list(_NODES)
    for gpu in gpus:
        wanted.append(f"nvidia{gpu.minor}")
        for access in _slice_access(gpu):
            node = driver.slice_node(access)
            if node is None:
                return f"the driver names no device node for {access} of {gpu.uuid}"
            wanted.append(node)
    missing = [str(driver.node(name)) for name in wanted if not driver.node(name).exists()]
    if missing:
        hint = " (`nvidia-modprobe -u -c 0` makes that one)" if missing[0].endswith("nvidia-uvm") else ""
        return f"{missing[0]} is not there{hint}"
    libraries = driver.libraries()
    if not any(name.startswith("libcuda.so.") for name in libraries):
        return f"no libcuda of the driver's version ({driver.version() or 'no driver is loaded'}) is on this machine"
    nodes = dict.fromkeys([*wanted, *(name for name in _OPTIONAL_NODES if driver.node(name).exists())])
    return Passed(
        variables={**_NO_GPU, **_ORDER},
        host={"devices": [f"{os.path.realpath(driver.node(name))}:/dev/{name}:rw" for name in nodes]},
        libraries=libraries,
    )


#: The ways into a container by name, best first: each answers with what to ask for, or with why it cannot be.
WAYS: Mapping[str, Callable[[Sequence[Gpu], Offer, Driver], Passed | str]] = {
    "CDI": by_cdi,
    "device request": by_device_request,
    "nvidia runtime": by_nvidia_runtime,
    "device nodes": by_device_nodes,
}


def why_not(gpus: Sequence[Gpu], offered: Offer, driver: Driver) -> dict[str, str]:
    """The ways by name, in their order → why one is not tried here, or empty."""
    asked = {name: way(gpus, offered, driver) for name, way in WAYS.items()}
    return {name: answer if isinstance(answer, str) else "" for name, answer in asked.items()}


def prepare(passed: Passed, launch: Launch) -> Passed:
    """Show the driver's libraries in one folder of a container, with all their names; nothing is copied.

    A folder of the slot holds the links, and an empty file for each library to be mounted on.
    """
    if not passed.libraries:
        return passed
    folder = launch.folder / "driver"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    for name, (_, links) in passed.libraries.items():
        (folder / name).touch()
        for link in links:
            (folder / link).symlink_to(name)
    files = [(real, f"{LIBRARIES}/{name}") for name, (real, _) in passed.libraries.items()]
    return replace(
        passed,
        variables={**passed.variables, **_library_path(launch, LIBRARIES)},
        binds=((folder, LIBRARIES), *files),
    )


def into_process(launch: Launch, driver: Driver) -> Passed:
    """What a process tree is given: it sees all devices of the machine, and CUDA keeps to those that are named.

    The libraries of the driver are linked to in a folder of the slot, because the linker need not know where they lie.
    """
    if not launch.gpus:
        return NOTHING
    folder = launch.folder / "driver"
    libraries = driver.libraries()
    if libraries:
        folder.mkdir()
    for name, (real, links) in libraries.items():
        for each in (name, *links):
            (folder / each).symlink_to(real)
    path = _library_path(launch, str(folder)) if libraries else {}
    chosen = {"CUDA_VISIBLE_DEVICES": ",".join(_uuids(launch.gpus)), **_ORDER}
    return Passed(variables={**_NO_GPU, **chosen, **path})


def broken_promises(launch: Launch, hello: Mapping[str, Any], *, own_dev: bool) -> list[str]:
    """What a slot has of GPUs and should not have, or should and has not. own_dev: whether its /dev is its own."""
    found = hello["gpus"]
    if not launch.gpus:
        shown = ", ".join(found["nodes"])
        return [f"GPUs can be seen that it did not ask for ({shown})"] if shown and own_dev else []
    if found["problem"]:
        return [found["problem"]]
    asked = {each.uuid.partition("-")[2].lower() for each in launch.gpus}
    if set(found["seen"]) == asked and len(found["seen"]) == len(asked):
        return []
    seen = ", ".join(found["seen"]) or "none"
    return [f"it was given {', '.join(_uuids(launch.gpus))}, and CUDA shows {seen}"]


def refused(environment: str, said: Mapping[str, str]) -> MachineError:
    """No way worked. said: the name of each way → what came of it."""
    return MachineError(
        f"no GPU can be given to a container of `{environment}`",
        why="\n".join(f"{name}: {text}" for name, text in said.items()),
        hint="NVIDIA's container toolkit gives the engine a way; `--runtime process` needs none",
    )


# -- details -----------------------------------------------------------------------------------------------------------


def _uuids(gpus: Sequence[Gpu]) -> list[str]:
    return [each.uuid for each in gpus]


def _for_toolkit(gpus: Sequence[Gpu]) -> dict[str, str]:
    return {
        "NVIDIA_VISIBLE_DEVICES": ",".join(_uuids(gpus)),
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        **_ORDER,
    }


def _library_path(launch: Launch, folder: str) -> dict[str, str]:
    """The driver's libraries come last: their names are nobody else's, unless somebody means it."""
    own = launch.variables.get("LD_LIBRARY_PATH", "")
    return {"LD_LIBRARY_PATH": f"{own}:{folder}" if own else folder}


def _slice_access(gpu: Gpu) -> Sequence[str]:
    if gpu.instances is None:
        return ()
    instance, compute = gpu.instances
    return (f"gpu{gpu.minor}/gi{instance}/access", f"gpu{gpu.minor}/gi{instance}/ci{compute}/access")


def _cdi_devices(folders: Sequence[Path]) -> tuple[set[str], list[str]]:
    """The names of the GPUs in CDI specifications, and the files that cannot be read as one."""
    names: set[str] = set()
    problems = []
    for path in sorted(path for folder in folders for path in folder.glob("*") if path.suffix in _CDI_FILES):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            if found["kind"] == _CDI_KIND:
                names |= {str(each["name"]) for each in found["devices"]}
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as exc:
            problems.append(f"{path} cannot be read: {str(exc).splitlines()[0]}")
    return names, problems


def _linker_cache() -> Iterator[Path]:
    """The libraries that the linker of this machine finds, those of another architecture left out."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        return
    listed = subprocess.run([program, "-p"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        name, _, path = line.strip().partition(" => ")
        if path and ("64" in name.partition("(")[2]):  # x86-64, AArch64; what says neither has 32 bits
            yield Path(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
