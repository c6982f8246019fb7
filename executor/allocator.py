"""The GPUs of this machine as one run has them: what is seen of them, and the leases of its attempts.

    see ──► Device …, for the scheduler ──► it chooses UUIDs ──► take ──► Lease, or None where somebody was faster
    changed: until what others hold may have become free

That a lease is given back is an event. That a stranger's process has left a device is none, so it is looked at every
two seconds, as long as a call waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from executor import gpus
from executor.events import Device
from executor.gpus import Gpu, Lease, Leases, Own
from executor.sampling import Sampler

_STRANGERS_S = 2.0


class GpuAllocator:
    """Leases devices for a run. own: which processes are its own. `see` and `take` block for milliseconds."""

    def __init__(self, run: str, own: Callable[[], Own], leases: Leases | None = None) -> None:
        self._run, self._own = run, own
        self._leases = leases or Leases()
        self._seen: dict[str, Gpu] = {}
        self._devices: tuple[Device, ...] = ()
        self._taken: dict[str, Lease] = {}
        self._sampler = Sampler()

    def see(self) -> tuple[Device, ...]:
        """Every device that can be used, as it is now."""
        self._seen = {each.uuid: each for each in gpus.discover().usable}
        own = self._own()
        held = self._leases.held_by
        self._devices = tuple(gpus.as_device(each, held(each.uuid), own) for each in self._seen.values())
        return self._devices

    @property
    def devices(self) -> tuple[Device, ...]:
        """What `see` saw last."""
        return self._devices

    def take(self, call: str, uuids: Sequence[str], *, shared: bool, memory_bytes: int) -> tuple[Gpu, ...] | None:
        """Lease devices for a call that asks for so much free memory on each; None where that cannot be just now.

        shared: also where strangers have memory
        """
        lease = self._leases.try_take(uuids, self._run)
        if lease is None:
            return None
        found = {each.uuid: each for each in self.see()}
        fits = all(
            uuid in found and (shared or not found[uuid].foreign) and found[uuid].free_bytes >= memory_bytes
            for uuid in uuids
        )
        if not fits:
            lease.close()
            return None
        self._taken[call] = lease
        return tuple(self._seen[uuid] for uuid in uuids)

    def watch(self, call: str) -> None:
        """Watch what a call does with its devices, if it has any; until `watched`."""
        if lease := self._taken.get(call):
            self._sampler.begin(call, lease.uuids)

    def watched(self, call: str) -> dict[str, Any]:
        """What was seen, as a part of the evidence: `gpus`, by UUID (see `Sampler.end`); nothing of a call without."""
        seen = self._sampler.end(call) if call in self._taken else {}
        return {"gpus": seen} if seen else {}

    def give_back(self, call: str) -> None:
        """What a call had is free for everybody; of one that had nothing, nothing is."""
        if lease := self._taken.pop(call, None):
            self._sampler.end(call)
            lease.close()

    async def changed(self) -> bool:
        """Wait until what others had of the devices last seen may be free; False where they had nothing."""
        held = [each.uuid for each in self._devices if each.held]
        strangers = any(each.foreign for each in self._devices)
        if held:
            with contextlib.suppress(asyncio.TimeoutError):  # another class before Python 3.11
                await asyncio.wait_for(self._leases.wait_released(held), _STRANGERS_S if strangers else None)
        elif strangers:
            await asyncio.sleep(_STRANGERS_S)
        return bool(held or strangers)

    def close(self) -> None:
        """Give everything back."""
        for call in list(self._taken):
            self.give_back(call)
