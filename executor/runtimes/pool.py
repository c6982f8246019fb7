"""The slots of one run: an idle one of the right environment and shape is used again, otherwise a new one is started."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from executor.gpus import Gpu, Own
from executor.manifest import Shape
from executor.runtimes import Launch, Runtime
from executor.runtimes.slot import Slot
from executor.worker import folders

#: Idle slots kept for later calls; beyond it the one that was idle longest goes.
MOST_IDLE = 16


Kind = tuple[str, Shape, tuple[str, ...]]


class SlotPool:
    """Hands out slots. launch: what the n-th slot is made of, for an environment, a shape and devices."""

    def __init__(self, runtime: Runtime, launch: Callable[[str, Shape, tuple[Gpu, ...], int], Launch]) -> None:
        self._runtime, self._launch = runtime, launch
        self._numbers = itertools.count(1)
        self._idle: list[tuple[Kind, Slot]] = []  # the one that is idle longest first
        self._live: set[Slot] = set()
        self._stopping: set[asyncio.Task[None]] = set()

    def own(self) -> Own:
        """Who runs in the slots, as the machine knows them."""
        containers = [slot.container for slot in self._live if slot.container]
        return Own(containers=containers, roots=[slot.pid for slot in self._live if slot.pid])

    async def take(self, environment: str, shape: Shape, gpus: tuple[Gpu, ...] = ()) -> Slot:
        """A slot of an environment and a shape, with these devices; to be given back or stopped. Raises `MachineError`."""
        wanted = _kind(environment, shape, gpus)
        for index, (kind, slot) in reversed(list(enumerate(self._idle))):
            if kind == wanted:
                del self._idle[index]
                if slot.is_alive():
                    return slot
                self._discard(slot)
        slot = await self._runtime.start(self._launch(environment, shape, gpus, next(self._numbers)))
        self._live.add(slot)
        return slot

    def give_back(self, environment: str, shape: Shape, slot: Slot, gpus: tuple[Gpu, ...] = ()) -> None:
        """Keep a slot for the next call of its environment, shape and devices, without what the last one was given or left.

        One whose folders the last call has spoiled is ended instead.
        """
        try:
            for folder in (slot.inputs, slot.outputs):
                folders.empty_folder(str(folder))
        except OSError:
            self._discard(slot)
            return
        self._idle.append((_kind(environment, shape, gpus), slot))
        if len(self._idle) > MOST_IDLE:
            self._discard(self._idle.pop(0)[1])

    async def stop(self, slot: Slot) -> None:
        """End a slot that cannot be used again."""
        await self._runtime.stop(slot)
        self._live.discard(slot)

    async def close(self) -> None:
        """End every slot, and return when all are gone."""
        for _, slot in self._idle:
            slot.hang_up()
        await asyncio.gather(*self._stopping)
        await self._runtime.close()

    def _discard(self, slot: Slot) -> None:
        """End a slot while everything else goes on."""
        stopping = asyncio.ensure_future(self.stop(slot))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)


def _kind(environment: str, shape: Shape, gpus: tuple[Gpu, ...]) -> Kind:
    return environment, shape, tuple(each.uuid for each in gpus)
