"""Tasks of an environment without a network have none; the others have what this machine has."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.harness import MakeProject, RunLocal

FLOW = """
    import os
    import socket

    from executor import Resources, TaskEnvironment

    small = Resources(cpu=0.2, memory="128Mi")
    closed = TaskEnvironment("closed", image="envs/leaf/environment.yml", resources=small, network=False)
    opened = TaskEnvironment("opened", image="envs/leaf/environment.yml", resources=small)
    root = TaskEnvironment("root", image="envs/leaf/environment.yml", resources=small, depends_on=[closed, opened])


    def reached(address: str, port: int) -> str:
        try:
            socket.create_connection((address, port), timeout=10).close()
        except OSError as exc:
            return type(exc).__name__
        return "reached"


    def own_server() -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return reached("127.0.0.1", server.getsockname()[1])


    def look(address: str, port: int) -> dict:
        routes = open("/proc/net/route").read().splitlines()[1:]
        return {"reached": reached(address, port), "routes": len(routes), "own": own_server()}


    @closed.task
    def look_closed(address: str, port: int) -> dict:
        return look(address, port)


    @opened.task
    def look_opened(address: str, port: int) -> dict:
        return look(address, port)


    @root.task
    def both(address: str, port: int) -> dict:
        return {"closed": look_closed(address, port), "opened": look_opened(address, port)}
"""

#: Starts a command where nobody may make another network namespace; empty where that cannot be done.
WITHOUT_NAMESPACES = [
    *("unshare", "-Ur", "sh", "-c"),
    'for each in user net; do echo 0 >/proc/sys/user/max_${each}_namespaces || exit 1; done; exec "$@"',
    "sh",
]

SPECS = {"leaf": ["python >=3.10"]}


@pytest.fixture
def server() -> Iterator[tuple[str, str]]:
    """The address and port of a server on this machine that a container with a network reaches."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(("192.0.2.1", 9))  # nothing is sent: this only asks which address we would have
        address = route.getsockname()[0]
    with socket.create_server((address, 0)) as listening:
        threading.Thread(target=_accept, args=(listening,), daemon=True).start()
        yield address, str(listening.getsockname()[1])


def _accept(listening: socket.socket) -> None:
    while True:
        try:
            listening.accept()[0].close()
        except OSError:
            return


def test_the_network_is_off_where_it_is_said_and_on_elsewhere(
    run_local: RunLocal, project: MakeProject, runtime: str, server: tuple[str, str]
) -> None:
    """No route and nobody to be reached, but the task's own loopback; the other environment reaches the server."""
    root = project({"flow.py": FLOW}, SPECS)
    address, port = server
    finished = run_local("both", "--address", address, "--port", port, "--runtime", runtime, "--json", cwd=root)
    assert finished.code == 0, finished.stderr
    closed, opened = finished.document["result"]["closed"], finished.document["result"]["opened"]
    assert (closed["routes"], closed["own"]) == (0, "reached")
    assert closed["reached"] != "reached"
    assert opened["reached"] == opened["own"] == "reached"
    assert opened["routes"] > 0


def test_offline_no_task_has_a_network(
    run_local: RunLocal, project: MakeProject, runtime: str, server: tuple[str, str]
) -> None:
    """With `--offline` the same workflow reaches nobody from either environment."""
    root = project({"flow.py": FLOW}, SPECS)
    address, port = server
    given = ["both", "--address", address, "--port", port, "--runtime", runtime, "--json"]
    assert run_local(*given, cwd=root).code == 0
    finished = run_local("--offline", *given, cwd=root)
    assert finished.code == 0, finished.stderr
    assert {each["routes"] for each in finished.document["result"].values()} == {0}
    assert "reached" not in {each["reached"] for each in finished.document["result"].values()}


def test_what_a_process_cannot_be_promised_is_said_before_it_runs(
    run_local: RunLocal, project: MakeProject, server: tuple[str, str]
) -> None:
    """Where the kernel gives no namespaces, `network=False` cannot be kept, and `plan` and the run say so."""
    if subprocess.run([*WITHOUT_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace without more of them cannot be made here")
    root = project({"flow.py": FLOW}, SPECS)
    told = "`closed` has `network=False`, and its tasks will have this machine's network all the same"
    planned = run_local("plan", "both", "--runtime", "process", cwd=root, wrapped=WITHOUT_NAMESPACES)
    assert told in planned.stdout
    assert "`opened`" not in planned.stdout
    assert told not in run_local("plan", "both", "--runtime", "process", cwd=root).stdout
    address, port = server
    given = ["both", "--address", address, "--port", port, "--runtime", "process"]
    assert told in run_local(*given, cwd=root, wrapped=WITHOUT_NAMESPACES).stderr
