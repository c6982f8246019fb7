"""The GPUs of a machine, and which call has which: the part of the scheduler's state that knows them by UUID."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from executor.events import Device
from executor.manifest import Shape


class Devices:
    """Devices as they were last seen. taken: UUID → the call that has it."""

    def __init__(self, seen: Iterable[Device]) -> None:
        self.taken: dict[str, str] = {}
        self._seen = {each.uuid: each for each in seen}

    def see(self, seen: Iterable[Device]) -> None:
        """Take note of all devices, as they are now."""
        self._seen = {each.uuid: each for each in seen}

    def take(self, uuids: Iterable[str], call: str) -> None:
        """Give devices to a call."""
        for uuid in uuids:
            assert uuid not in self.taken
            self.taken[uuid] = call

    def give_back(self, uuids: Iterable[str]) -> None:
        """Take them back."""
        for uuid in uuids:
            del self.taken[uuid]

    def matching(self, shape: Shape) -> int:
        """How many devices could ever be what is asked for."""
        return sum(1 for _ in self._matching(shape))

    def usable(self, shape: Shape) -> int:
        """How many of these nobody outside this run holds."""
        return sum(not self._outside(each, shape) for each in self._matching(shape))

    def free(self, shape: Shape) -> int:
        """How many of those no call of this run has."""
        return len(self._free(shape))

    def choose(self, shape: Shape) -> tuple[str, ...] | None:
        """The devices for a call: of those that are free, the smallest that do; None where there are too few."""
        free = sorted(self._free(shape), key=lambda each: (each.memory_bytes, each.free_bytes, each.uuid))
        return tuple(each.uuid for each in free[: shape.gpus]) if len(free) >= shape.gpus else None

    def why_not(self, shape: Shape, tasks: Mapping[str, str]) -> str:
        """Who has the devices that a call waits for; empty where it is not devices that it lacks.

        tasks: the calls that have devices → their tasks
        """
        free = self._free(shape)
        if len(free) >= shape.gpus:
            return ""
        reasons = []
        for each in self._matching(shape):
            if each.uuid in self.taken:
                call = self.taken[each.uuid]
                reasons.append(f"{_named(each)} is used by `{tasks[call]}` ({call})")
            elif outside := self._outside(each, shape):
                reasons.append(f"{_named(each)} {outside}")
        return "; ".join(reasons)

    def describe(self, shape: Shape) -> str:
        """What there is, for a call that will never get what it asks for."""
        if not self._seen:
            return "none"
        names = ", ".join(f"{each.name} ({each.memory_bytes / 2**30:.3g} GiB)" for each in self._seen.values())
        return f"{self.matching(shape)} such among {names}" if shape.gpu_model or shape.gpu_memory_bytes else names

    def _matching(self, shape: Shape) -> Iterator[Device]:
        words = shape.gpu_model.lower().split()
        for each in self._seen.values():
            if each.memory_bytes >= (shape.gpu_memory_bytes or 0) and all(word in each.name.lower() for word in words):
                yield each

    def _free(self, shape: Shape) -> list[Device]:
        return [
            each for each in self._matching(shape) if each.uuid not in self.taken and not self._outside(each, shape)
        ]

    def _outside(self, device: Device, shape: Shape) -> str:
        """Who outside this run keeps a device from being used, as the rest of a sentence."""
        if device.uuid in self.taken:
            return ""
        if device.held:
            return f"is held by {device.held}"
        if device.foreign and not shape.gpu_shared:
            return f"is in use by {device.foreign}"
        if device.free_bytes < (shape.gpu_memory_bytes or 0):
            others = f", in use by {device.foreign}" if device.foreign else ""
            return f"has {device.free_bytes / 2**30:.3g} GiB free{others}"
        return ""


def describe_gpus(shape: Shape) -> str:
    """The devices that are asked for, in words."""
    model = f" `{shape.gpu_model}`" if shape.gpu_model else ""
    memory = f" with {shape.gpu_memory_bytes / 2**30:.3g} GiB" if shape.gpu_memory_bytes else ""
    return f"{shape.gpus} GPU{'s' * (shape.gpus != 1)}{model}{memory}"


def _named(device: Device) -> str:
    return f"{device.name} ({device.uuid[:12]})"
