"""What this machine is asked for, and what its child processes get of us."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from executor import machine


def test_a_child_is_not_held_up_by_a_file_that_another_thread_is_writing_to() -> None:
    """A thread that is in the middle of a write holds the file's lock; whoever is forked then must not wait for it."""
    reader, writer = os.pipe()
    file = machine.keep_from_forks(os.fdopen(writer, "wb"))
    writing = threading.Thread(target=file.write, args=(b"x" * 2**20,))  # more than a pipe holds
    writing.start()
    try:
        assert os.read(reader, 1)  # so it has begun
        assert machine.run(["true"]).returncode == 0
    finally:
        threading.Thread(target=_drain, args=(reader,)).start()
        writing.join()
        file.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_child_is_started_leaves_none(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, number: signal.Signals
) -> None:
    """It is handled, once, when there is somebody to end the child; its pipes are closed, or this warns."""

    def terminate(*_: object) -> None:
        raise KeyboardInterrupt(number.name)

    before = signal.signal(number, terminate)
    request.addfinalizer(lambda: signal.signal(number, before))
    spawn, started = machine.spawn, list[int]()

    def interrupted(argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        process = spawn(argv, **options)
        os.kill(os.getpid(), number)
        started.append(process.pid)
        return process

    monkeypatch.setattr(machine, "spawn", interrupted)
    with (
        pytest.raises(KeyboardInterrupt, match=number.name),
        machine.child(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    ):
        pytest.fail("nobody was told")
    gc.collect()
    assert len(started) == 1
    assert not Path(f"/proc/{started[0]}").exists()
    assert signal.getsignal(number) is terminate


def _drain(reader: int) -> None:
    while os.read(reader, 2**16):
        pass
    os.close(reader)


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /users rw - autofs systemd-1 rw
31 30 0:31 / /users rw,relatime shared:2 - nfs4 server:/users rw
32 31 0:32 / /users/alice/fast rw shared:3 - xfs /dev/sdb1 rw
33 22 0:33 / /data\040of\040all rw - fuse.sshfs host:/ rw
34 22 0:34 / /datastore rw - lustre mds:/fs rw
35 22 0:35 / /broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/users/alice/.local/share/run-local", "nfs4"),
        ("/users", "nfs4"),
        ("/users/alice/fast/run-local", ""),
        ("/usersland", ""),
        ("/data of all/x", "fuse.sshfs"),
        ("/datastore", "lustre"),
        ("/data", ""),
        ("/broken/x", ""),
    ],
)
def test_network_file_systems_are_told_by_what_is_mounted(tmp_path: Path, path: str, kind: str) -> None:
    """By the innermost mount above a path, and the last one there; the path need not exist."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert machine.network_file_system(Path(path), str(mounts)) == kind
    assert machine.network_file_system(Path(path), str(tmp_path / "nothing")) == ""
