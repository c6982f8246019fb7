"""What GPUs do while calls have them: how much of their memory is in use, and how busy they are.

One thread looks twice a second, as long as any call has a device; a run without such calls never starts it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from executor import gpus

_EVERY_S = 0.5


@dataclass(slots=True)
class _Used:
    samples: int = 0
    peak_bytes: int = 0
    busy: list[int] = field(default_factory=lambda: [0, 0])  # percent in all, and of how many samples

    def add(self, seen: gpus.Sample) -> None:
        self.samples += 1
        self.peak_bytes = max(self.peak_bytes, seen.used_bytes)
        if seen.percent is not None:
            self.busy[0] += seen.percent
            self.busy[1] += 1

    def told(self) -> dict[str, Any]:
        mean = {"utilisation": round(self.busy[0] / self.busy[1] / 100, 4)} if self.busy[1] else {}
        return {"peak_bytes": self.peak_bytes, **mean, "samples": self.samples}


class Sampler:
    """Samples the devices of calls from `begin` to `end`."""

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._calls: dict[str, dict[str, _Used]] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, call: str, uuids: Sequence[str]) -> None:
        """Sample these devices for a call; the first time at once."""
        with self._lock:
            self._calls[call] = {uuid: _Used() for uuid in uuids}
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="run-local GPUs", daemon=True)
                self._thread.start()
        self._wake.set()

    def end(self, call: str) -> dict[str, dict[str, Any]]:
        """By UUID what was seen: `peak_bytes`, the most that was in use on the device, by whomever; `utilisation`, the
        part of the time in which it computed, from 0 to 1, where NVML tells it; and the number of `samples`.

        A device that was never seen is left out.
        """
        with self._lock:
            seen = self._calls.pop(call, {})
        if not self._calls:
            self._wake.set()
        return {uuid: used.told() for uuid, used in seen.items() if used.samples}

    def _look(self) -> None:
        with gpus.watched() as look:
            while True:
                self._wake.clear()
                with self._lock:
                    wanted = {uuid for each in self._calls.values() for uuid in each}
                    if not wanted:
                        self._thread = None
                        return
                seen = {uuid: sample for uuid in wanted if (sample := look(uuid))}
                with self._lock:
                    for each in self._calls.values():
                        for uuid in each.keys() & seen.keys():
                            each[uuid].add(seen[uuid])
                self._wake.wait(self._every_s)
