"""What this machine is asked for, and what its child processes get of us."""

from __future__ import annotations

import os
import threading

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
