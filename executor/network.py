"""Whether tasks that are to have no network can be kept from it on this machine.

A container is started without one, and its agent looks. A process leaves the network for a namespace of its own, which
not every kernel gives to everybody: where it does not, that is said before anything runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from executor.manifest import Manifest

_PROBE = """import sys; sys.path.append(sys.argv[1])
from executor.worker import kernel
sys.exit(not kernel.try_to_leave_network())"""
_OURS = str(Path(__file__).resolve().parent.parent)


def check_networks(manifest: Manifest, names: Sequence[str], runtime: str, *, offline: bool) -> dict[str, str]:
    """What is to be said of these environments: of those whose tasks will have a network although they should not.

    offline: none of them should
    """
    closed = [name for name in names if offline or not manifest.environments[name].network]
    if runtime != "process" or not closed or _can_be_left():
        return {}
    return {name: _warning(name, offline=manifest.environments[name].network) for name in closed}


def _warning(name: str, *, offline: bool) -> str:
    said = "is run with `--offline`" if offline else "has `network=False`"
    return (
        f"`{name}` {said}, and its tasks will have this machine's network all the same: the kernel refuses them a network "
        "namespace; `--runtime docker` keeps them from it"
    )


def _can_be_left() -> bool:
    done = subprocess.run([sys.executable, "-c", _PROBE, _OURS], capture_output=True, check=False)
    return done.returncode == 0
