"""How an agent comes to be: in a container it already is PID 1; on the bare machine it is made PID 1 of a namespace.

The rungs, best first; the agent reports which one it stands on:

    container    the engine made PID 1 of us
    namespaces   a user, mount and process namespace of our own; the process that made it waits outside
    bubblewrap   the same, made by `bwrap`, which on some machines may do what we may not
    subreaper    where there are no namespaces: descendants are found by their parents, and killed by hand, by the agent
                 and by a supervisor above it, each of which outlives the other, and both of which outlive the host

Under the last three, standard input is a pipe that the host holds open for as long as it lives.
"""

from __future__ import annotations

import json
import os
import select
import signal
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
    if config["isolation"] == "namespaces" and not _become_first(config):
        config["isolation"] = "subreaper"
    if config["isolation"] == "subreaper":
        _become_supervised()
    if not config["network"] and config["isolation"] != "container":
        kernel.leave_network()  # whether that could be done, our HELLO says
    Agent(config).serve()


def _become_first(config: dict[str, Any]) -> bool:
    """Go on as PID 1 of new namespaces; the process that was us waits outside and dies with either side."""
    if kernel.enter_namespaces():
        return False
    _mount(config)
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(_exit_code(status))
    kernel.die_with_parent()
    kernel.mount_own_proc()
    return True


def _exit_code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _become_supervised() -> None:
    """Go on below a process that kills whatever is left of us, however we end, and when the host is gone.

    The kernel tied us to the host's life; that is taken back, because who is killed with the host cannot clear up.
    """
    kernel.outlive_parent()
    kernel.become_subreaper()
    ended, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    agent = os.fork()
    if agent == 0:
        signal.set_wakeup_fd(-1)
        os.close(ended)
        os.close(writer)
        kernel.become_subreaper()
        return
    pid, status = 0, 0
    while not pid and 0 not in select.select([0, ended], [], [])[0]:
        os.read(ended, 4096)
        pid, status = os.waitpid(agent, os.WNOHANG)
    kernel.end_descendants()
    os._exit(_exit_code(status))


def _mount(config: dict[str, Any]) -> None:
    """Make folders read-only, and show mounted data where tasks are to find it; while /proc is still the one outside."""
    for folder in config["read_only"]:
        kernel.mount_read_only(folder, folder)
    for source, target in [(kernel.hold_open(source), target) for source, target in config["mounts"]]:
        if not kernel.mount_read_only(source, target):
            config["not_mounted"].append(target)
