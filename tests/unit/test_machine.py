"""What this machine is asked for, and what its child processes get of us."""

from __future__ import annotations

import os
import threading
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
