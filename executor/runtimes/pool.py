"""The slots of one run: an idle one of the right environment and shape is used again, otherwise a new one is started."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from executor.manifest import Shape
from executor.runtimes import Launch, Runtime
from executor.runtimes.slot import Slot
from executor.worker import folders

#: Idle slots kept for later calls; beyond it the one that was idle longest goes.
MOST_IDLE = 16


class SlotPool:
    """Hands out slots. launch: what the n-th slot is made of, when it is for this environment and of this shape."""

    def __init__(self, runtime: Runtime, launch: Callable[[str, Shape, int], Launch]) -> None:
        self._runtime, self._launch = runtime, launch
        self._numbers = itertools.count(1)
        self._idle: list[tuple[tuple[str, Shape], Slot]] = []  # the one that is idle longest first
        self._stopping: set[asyncio.Task[None]] = set()

    async def take(self, environment: str, shape: Shape) -> Slot:
        """A slot of an environment and a shape, to be given back or stopped. Raises `MachineError`."""
        for index, (kind, slot) in reversed(list(enumerate(self._idle))):
            if kind == (environment, shape):
                del self._idle[index]
                if slot.is_alive():
                    return slot
                self._discard(slot)
        return await self._runtime.start(self._launch(environment, shape, next(self._numbers)))

    def give_back(self, environment: str, shape: Shape, slot: Slot) -> None:
        """Keep a slot for the next call of its environment and shape, without what the last one was given or left.

        One whose folders the last call has spoiled is ended instead.
        """
        try:
            for folder in (slot.inputs, slot.outputs):
                folders.empty_folder(str(folder))
        except OSError:
            self._discard(slot)
            return
        self._idle.append(((environment, shape), slot))
        if len(self._idle) > MOST_IDLE:
            self._discard(self._idle.pop(0)[1])

    async def stop(self, slot: Slot) -> None:
        """End a slot that cannot be used again."""
        await self._runtime.stop(slot)

    async def close(self) -> None:
        """End every slot, and return when all are gone."""
        for _, slot in self._idle:
            slot.hang_up()
        await asyncio.gather(*self._stopping)
        await self._runtime.close()

    def _discard(self, slot: Slot) -> None:
        """End a slot while everything else goes on."""
        stopping = asyncio.ensure_future(self._runtime.stop(slot))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
