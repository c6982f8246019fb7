"""What one attempt of a task asks of the machine, in Flyte's spellings.

    Resources(cpu=2, memory="4Gi", gpu="A100:1", shm="1Gi")
    Resources(cpu=("500m", 2), memory=("1Gi", "4Gi"))      # a tuple is (request, limit)

The request decides when an attempt may start; the limit is what its container gets. This module travels into
containers, so that environments can be declared there; it knows nothing of any machine.
"""

import re
from dataclasses import dataclass
from typing import Any, Optional, Union

from executor.errors import UsageError

Quantity = Union[int, float, str]
Amount = Union[Quantity, tuple[Quantity, Quantity], None]

_FACTORS = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_MEMORY = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([kKMGT]i?|)B?\s*$")
_CPU = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(m?)\s*$")

DEFAULT_CPUS = 1.0
DEFAULT_MEMORY_BYTES = 2 * 2**30


def parse_memory(amount: Quantity) -> int:
    """Bytes in `amount`: `4 * 2**30`, `"4Gi"`, `"512Mi"`, `"2G"`. Refuses anything else, and less than 1 byte."""
    found = _MEMORY.match(str(amount))
    if isinstance(amount, bool) or not found or found[2] not in _FACTORS or float(found[1]) * _FACTORS[found[2]] < 1:
        raise UsageError(f"`{amount}` is not an amount of memory", hint="write it like `512Mi`, `4Gi` or `2G`")
    return int(float(found[1]) * _FACTORS[found[2]])


def parse_cpus(amount: Quantity) -> float:
    """Cores in `amount`: `2`, `0.5`, `"500m"` (thousandths). Refuses anything else, and zero."""
    found = _CPU.match(str(amount))
    if isinstance(amount, bool) or not found or float(found[1]) <= 0:
        raise UsageError(f"`{amount}` is not a number of cores", hint="write it like `2`, `0.5` or `500m`")
    return float(found[1]) / (1000 if found[2] else 1)


def parse_gpus(amount: Union[int, str, None]) -> tuple[int, str]:
    """How many GPUs, and of which model (empty: any): `1`, `"A100:2"`, `"T4"`."""
    if amount is None:
        return 0, ""
    if isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0:
        return amount, ""
    model, _, count = str(amount).partition(":")
    if isinstance(amount, str) and model and (count.isdigit() or not count):
        return (int(model), "") if model.isdigit() and not count else (int(count or 1), model)
    raise UsageError(f"`{amount}` is not a request for GPUs", hint='write it like `1`, `"A100"` or `"A100:2"`')


@dataclass(frozen=True)
class Resources:
    """The share of the machine that one attempt of a task may use.

    cpu:    cores, fractions allowed; default 1
    memory: bytes or text with a unit; a hard limit. A tuple is what the first attempt gets, and the most: an attempt that
            runs out of it is made again with twice as much. Default: admitted as 2 GiB, limited by the machine only
    gpu:    whole devices, `1` or `"A100:2"`; an attempt never shares one with another attempt, of whatever run
    gpu_memory: what must be free on each of them
    gpu_shared: take one on which processes that are not run-local's have memory
    disk:   what has to be free where run-local keeps its things, before a run begins; it limits nothing afterwards
    shm:    size of /dev/shm; default a quarter of the memory limit
    """

    cpu: Amount = None
    memory: Amount = None
    gpu: Union[int, str, None] = None
    disk: Amount = None
    shm: Amount = None
    gpu_memory: Optional[Quantity] = None
    gpu_shared: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; raises `UsageError` for an amount that means nothing."""
        cpu_request, cpu_limit = _pair(self.cpu, parse_cpus, DEFAULT_CPUS, None)
        memory_request, memory_limit = _pair(self.memory, parse_memory, DEFAULT_MEMORY_BYTES, None)
        gpus, model = parse_gpus(self.gpu)
        return {
            "cpus": cpu_request,
            "cpus_limit": cpu_limit if cpu_limit is not None else cpu_request,
            "memory_bytes": memory_request,
            "memory_limit_bytes": memory_limit,
            "gpus": gpus,
            "gpu_model": model,
            "shm_bytes": None if self.shm is None else _pair(self.shm, parse_memory, 0, None)[1],
            "gpu_memory_bytes": None if self.gpu_memory is None else parse_memory(self.gpu_memory),
            "gpu_shared": _flag(self.gpu_shared),
            "disk_bytes": None if self.disk is None else _pair(self.disk, parse_memory, 0, None)[1],
        }


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError("`gpu_shared` must be True or False", why=f"it is {value!r}")
    return value


def _pair(amount: Amount, parse: Any, request: Any, limit: Optional[Any]) -> tuple[Any, Any]:
    """(request, limit): one amount is both, a tuple is the two, None the defaults."""
    if amount is None:
        return request, limit
    if not isinstance(amount, tuple):
        return parse(amount), parse(amount)
    if len(amount) != 2 or parse(amount[0]) > parse(amount[1]):  # type: ignore[redundant-expr]  # users are not checked
        raise UsageError(f"`{amount}` is not (request, limit)", hint="the request comes first and is not the larger")
    return parse(amount[0]), parse(amount[1])
