"""`scripts/engine.py`: what a killed Docker engine left behind does not keep the next one from starting."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import engine


@pytest.fixture
def places(tmp_path: Path) -> engine.Places:
    """The places of an engine of its own."""
    (tmp_path / "exec" / "containerd").mkdir(parents=True)
    return engine.find_places(
        ["--exec-root", f"{tmp_path}/exec", "--pidfile", f"{tmp_path}/pid", "-H", f"unix://{tmp_path}/s", "--debug"]
    )


@pytest.fixture
def listener(places: engine.Places) -> Iterator[socket.socket]:
    """Somebody who listens where the engine's containerd would."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(places.sockets[1]))
        listening.listen()
        yield listening


def test_the_places_are_those_that_the_arguments_name(places: engine.Places, tmp_path: Path) -> None:
    """A second engine's leftovers are looked for in its own places, and never in the first one's."""
    ours = {*places.pid_files.values(), *places.sockets[:-2]}
    assert all(path.is_relative_to(tmp_path) for path in ours)
    usual = engine.find_places([])
    assert usual.pid_files["dockerd"] == Path("/var/run/docker.pid")
    assert usual.sockets[0] == Path("/var/run/docker.sock")


def test_a_pid_file_is_removed_if_its_process_is_another_program(places: engine.Places) -> None:
    """After a crash the number may belong to anybody: here to this very test."""
    for path, pid in zip(places.pid_files.values(), (os.getpid(), 2**22 + 1), strict=True):
        path.write_text(f"{pid}\n")
    engine.clear_leftovers(places)
    assert not any(path.exists() for path in places.pid_files.values())


def test_a_socket_is_removed_only_if_nobody_listens(places: engine.Places, listener: socket.socket) -> None:
    """A socket file outlives its process; one that is alive is left alone."""
    assert listener.fileno() >= 0
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(places.sockets[0]))
    engine.clear_leftovers(places)
    assert [path.exists() for path in places.sockets[:2]] == [False, True]


def test_stop_leaves_alone_what_is_no_engine() -> None:
    """A pid that meanwhile belongs to another program is not signalled."""
    with subprocess.Popen(["sleep", "60"]) as other:
        engine.stop(other.pid)
        assert other.poll() is None
        other.kill()
