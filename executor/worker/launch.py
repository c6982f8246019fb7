"""How an agent comes to be: in a container it already is PID 1; on the bare machine it is made PID 1 of a namespace.

The rungs, best first; the agent reports which one it stands on:

    container    the engine made PID 1 of us
    namespaces   a user, mount and process namespace of our own; the process that made it waits outside
    subreaper    where the kernel refuses namespaces: descendants are found by their parents, and killed by hand
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, NoReturn

from executor.worker import child, kernel
from executor.worker.agent import Agent


def main() -> NoReturn:
    """Run the agent; the one argument is its configuration as JSON (see `agent.Agent`)."""
    config = json.loads(sys.argv[1])
    if "channel" in config:  # we are the new interpreter of one attempt
        os._exit(child.run_from(config, socket.socket(fileno=config["channel"])))
    if config["isolation"] != "container":
        config["isolation"] = "namespaces" if _become_first(config) else "subreaper"
    if config["isolation"] == "subreaper":
        kernel.become_subreaper()
    if not config["network"] and config["isolation"] != "container":
        kernel.leave_network()  # whether that could be done, our HELLO says
    Agent(config).serve()


def _become_first(config: dict[str, Any]) -> bool:
    """Go on as PID 1 of new namespaces; the process that was us waits outside and dies with either side."""
    if not kernel.enter_namespaces():
        return False
    _mount(config)
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    kernel.die_with_parent()
    kernel.mount_own_proc()
    return True


def _mount(config: dict[str, Any]) -> None:
    """Make folders read-only, and show mounted data where tasks are to find it; while /proc is still the one outside."""
    for folder in config["read_only"]:
        kernel.mount_read_only(folder, folder)
    for source, target in [(kernel.hold_open(source), target) for source, target in config["mounts"]]:
        if not kernel.mount_read_only(source, target):
            config["not_mounted"].append(target)
