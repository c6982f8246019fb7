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
from typing import NoReturn

from executor.worker import child, kernel
from executor.worker.agent import Agent


def main() -> NoReturn:
    """Run the agent; the one argument is its configuration as JSON (see `agent.Agent`)."""
    config = json.loads(sys.argv[1])
    if "channel" in config:  # we are the new interpreter of one attempt
        os._exit(child.run_from(config, socket.socket(fileno=config["channel"])))
    if config["isolation"] != "container":
        config["isolation"] = "namespaces" if _become_first(config["read_only"]) else "subreaper"
    if config["isolation"] == "subreaper":
        kernel.become_subreaper()
    Agent(config).serve()


def _become_first(read_only: list[str]) -> bool:
    """Go on as PID 1 of new namespaces; the process that was us waits outside and dies with either side."""
    if not kernel.enter_namespaces():
        return False
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    kernel.die_with_parent()
    kernel.mount_own_proc()
    for folder in read_only:
        kernel.make_read_only(folder)
    return True
